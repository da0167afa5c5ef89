//! A load balancer between clients and replicas, as small as one can be: each TCP connection goes
//! to the next replica that is ready, for its life. It runs in a process of its own, so that what
//! it costs can be told from the rest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::guard::raise_file_limit;

/// How often each replica is asked whether it is ready.
const LOOK: Duration = Duration::from_millis(250);
/// How long its answer, and a connection to it, may take.
const ANSWER: Duration = Duration::from_secs(1);
/// Connections at once: what one loopback address has ports for.
const CONNECTIONS_MAX: usize = 25_000;
/// What is read at once. It is written at once too, so a connection holds no more than this, and
/// nothing while idle.
const CHUNK_BYTES: usize = 8 * 1024;

/// A replica as the balancer sees it.
#[derive(Debug)]
struct Replica {
    /// `host:port`.
    address: String,
    ready: AtomicBool,
}

#[derive(Debug)]
struct Fleet {
    replicas: Vec<Replica>,
    turn: AtomicUsize,
}

impl Fleet {
    fn new(bases: &[String]) -> Self {
        let replica = |base: &String| {
            let address = base.trim_start_matches("http://").trim_end_matches('/').to_owned();
            Replica { address, ready: AtomicBool::new(false) }
        };
        Self { replicas: bases.iter().map(replica).collect(), turn: AtomicUsize::new(0) }
    }

    /// Asks every replica once.
    async fn look(&self, http: &reqwest::Client) {
        join_all(self.replicas.iter().map(|replica| async {
            let answer = http.get(format!("http://{}/readyz", replica.address)).send().await;
            let ready = answer.is_ok_and(|answer| answer.status().is_success());
            replica.ready.store(ready, Ordering::Relaxed);
        }))
        .await;
    }

    /// A connection to the next replica that is ready and takes one.
    async fn connect(&self) -> Option<TcpStream> {
        for _ in 0..self.replicas.len() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let replica = &self.replicas[turn % self.replicas.len()];
            if !replica.ready.load(Ordering::Relaxed) {
                continue;
            }
            if let Ok(Ok(server)) = timeout(ANSWER, TcpStream::connect(&replica.address)).await {
                return Some(server);
            }
            // Until it is asked again.
            replica.ready.store(false, Ordering::Relaxed);
        }
        None
    }
}

/// Listens on a free port, says where, and passes connections on until it is ended.
///
/// # Errors
/// If there is no port.
pub async fn serve(bases: &[String]) -> Result<(), String> {
    raise_file_limit(0)?;
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    // Kept connections would hold up a replica that stops.
    let http =
        reqwest::Client::builder().timeout(ANSWER).pool_max_idle_per_host(0).no_proxy().build();
    let http = http.map_err(|error| error.to_string())?;
    let fleet = Arc::new(Fleet::new(bases));
    fleet.look(&http).await;
    println!("listening on http://{address}");
    let looking = async {
        loop {
            sleep(LOOK).await;
            fleet.look(&http).await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = accept(listener, &fleet) => {}
    }
    Ok(())
}

async fn accept(listener: TcpListener, fleet: &Arc<Fleet>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((client, _)) => drop(connections.spawn(pass_on(fleet.clone(), client))),
            // No file is free: one will be.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn pass_on(fleet: Arc<Fleet>, client: TcpStream) {
    let Some(server) = fleet.connect().await else {
        // As a port does that nobody listens on.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let up = async {
        if pump(&from_client, to_server).await.is_ok() {
            // A client that says no more still listens.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = up => {}
        _ = pump(&from_server, to_client) => {}
    }
}

/// Passes on what comes, then the end of it.
async fn pump(from: &OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    loop {
        from.readable().await?;
        let rest = match forward(from, &to) {
            Ok(Some(rest)) => rest,
            Ok(None) => return to.shutdown().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        // Nothing more is read until it is gone: who is slow is felt on the other side.
        to.write_all(&rest).await?;
    }
}

/// Passes on what is there. What could not be written at once; `None` at the end.
fn forward(from: &OwnedReadHalf, to: &OwnedWriteHalf) -> io::Result<Option<Vec<u8>>> {
    let mut chunk = [0; CHUNK_BYTES];
    let read = from.try_read(&mut chunk)?;
    if read == 0 {
        return Ok(None);
    }
    let written = match to.try_write(&chunk[..read]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        written => written?,
    };
    Ok(Some(chunk[written..read].to_vec()))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A server that answers everything by this, and its address.
    async fn answering(tasks: &mut JoinSet<()>, answer: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tasks.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut asked = [0; 1024];
                let _ = client.read(&mut asked).await;
                let _ = client.write_all(answer.as_bytes()).await;
            }
        });
        base
    }

    fn http(status: u16, body: &str) -> String {
        format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    #[tokio::test]
    async fn connections_go_round_the_ready_replicas_and_past_the_others() {
        let mut tasks = JoinSet::new();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        // Longer than what is passed on at once.
        let long = "b".repeat(CHUNK_BYTES * 3);
        let bases = [
            answering(&mut tasks, http(200, "a")).await,
            answering(&mut tasks, http(503, "not ready")).await,
            format!("http://{gone}"),
            answering(&mut tasks, http(200, &long)).await,
        ];
        let (fleet, client) = (Arc::new(Fleet::new(&bases)), reqwest::Client::new());
        fleet.look(&client).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let balanced = fleet.clone();
        tasks.spawn(async move { accept(listener, &balanced).await });
        let mut heard = Vec::new();
        for _ in 0..6 {
            let one =
                reqwest::Client::new().get(format!("http://{address}/")).send().await.unwrap();
            heard.push(one.text().await.unwrap());
        }
        heard.sort_unstable();
        assert!(
            heard[..3].iter().all(|body| body == "a")
                && heard[3..].iter().all(|body| *body == long)
        );
        for replica in &fleet.replicas {
            replica.ready.store(false, Ordering::Relaxed);
        }
        assert!(
            reqwest::Client::new().get(format!("http://{address}/")).send().await.is_err(),
            "nobody is there"
        );
    }
}
