//! A minimal TCP load balancer: it forwards each connection to the next ready replica. It runs in
//! its own process, so that its CPU use is measured separately.

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

/// Interval of the readiness checks of each replica.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// Timeout of a readiness check, and of a connection to a replica.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Concurrent connections: one loopback address has about this many ephemeral ports.
const CONNECTIONS_MAX: usize = 25_000;
/// Bytes of one read. Each chunk is written before the next read, so a connection buffers at most
/// this much, and nothing while idle.
const CHUNK_BYTES: usize = 8 * 1024;

#[derive(Debug)]
struct Replica {
    /// `host:port`.
    address: String,
    ready: AtomicBool,
}

#[derive(Debug)]
struct Fleet {
    replicas: Vec<Replica>,
    /// Counts the connections, for round robin.
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

    /// Checks the readiness of every replica once.
    async fn probe(&self, http: &reqwest::Client) {
        join_all(self.replicas.iter().map(|replica| async {
            let answer = http.get(format!("http://{}/readyz", replica.address)).send().await;
            let ready = answer.is_ok_and(|answer| answer.status().is_success());
            replica.ready.store(ready, Ordering::Relaxed);
        }))
        .await;
    }

    /// Connects to the next ready replica that accepts.
    async fn connect(&self) -> Option<TcpStream> {
        for _ in 0..self.replicas.len() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let replica = &self.replicas[turn % self.replicas.len()];
            if !replica.ready.load(Ordering::Relaxed) {
                continue;
            }

            if let Ok(Ok(server)) = timeout(TIMEOUT, TcpStream::connect(&replica.address)).await {
                return Some(server);
            }
            // The next readiness check sets it again.
            replica.ready.store(false, Ordering::Relaxed);
        }
        None
    }
}

/// Listens on a free port, prints the address, and forwards connections until the process ends.
///
/// # Errors
/// If the file limit is too low, or the port cannot be opened.
pub async fn serve(bases: &[String]) -> Result<(), String> {
    raise_file_limit(0)?;
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;

    // Pooled connections would delay the shutdown of a replica.
    let http =
        reqwest::Client::builder().timeout(TIMEOUT).pool_max_idle_per_host(0).no_proxy().build();
    let http = http.map_err(|error| error.to_string())?;
    let fleet = Arc::new(Fleet::new(bases));
    fleet.probe(&http).await;
    println!("listening on http://{address}");

    let probing = async {
        loop {
            sleep(PROBE_INTERVAL).await;
            fleet.probe(&http).await;
        }
    };
    tokio::select! {
        () = probing => {}
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
            Ok((client, _)) => drop(connections.spawn(forward(fleet.clone(), client))),
            // Usually no file descriptor is free; one is once a connection ends.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn forward(fleet: Arc<Fleet>, client: TcpStream) {
    let Some(server) = fleet.connect().await else {
        // The client gets a reset, as from a closed port.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());

    let up = async {
        if pump(&from_client, to_server).await.is_ok() {
            // A client that has finished sending still reads.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = up => {}
        _ = pump(&from_server, to_client) => {}
    }
}

/// Copies bytes until the sender ends its stream, then ends the other stream.
async fn pump(from: &OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    loop {
        from.readable().await?;
        let rest = match copy_chunk(from, &to) {
            Ok(Some(rest)) => rest,
            Ok(None) => return to.shutdown().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        // Backpressure: a slow receiver stops the reads.
        to.write_all(&rest).await?;
    }
}

/// Copies the bytes that are available now. Returns those that the receiver did not take yet;
/// `None` at the end of the stream.
fn copy_chunk(from: &OwnedReadHalf, to: &OwnedWriteHalf) -> io::Result<Option<Vec<u8>>> {
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

    /// Starts a server that sends `answer` to every request. Returns its address.
    async fn answering(tasks: &mut JoinSet<()>, answer: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tasks.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = client.read(&mut request).await;
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
    async fn connections_go_to_the_ready_replicas_in_turn() {
        let mut tasks = JoinSet::new();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        // Several chunks long.
        let long = "b".repeat(CHUNK_BYTES * 3);
        let bases = [
            answering(&mut tasks, http(200, "a")).await,
            answering(&mut tasks, http(503, "not ready")).await,
            format!("http://{gone}"),
            answering(&mut tasks, http(200, &long)).await,
        ];
        let (fleet, client) = (Arc::new(Fleet::new(&bases)), reqwest::Client::new());
        fleet.probe(&client).await;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let balanced = fleet.clone();
        tasks.spawn(async move { accept(listener, &balanced).await });

        let mut bodies = Vec::new();
        for _ in 0..6 {
            let one =
                reqwest::Client::new().get(format!("http://{address}/")).send().await.unwrap();
            bodies.push(one.text().await.unwrap());
        }
        bodies.sort_unstable();
        assert!(
            bodies[..3].iter().all(|body| body == "a")
                && bodies[3..].iter().all(|body| *body == long)
        );

        for replica in &fleet.replicas {
            replica.ready.store(false, Ordering::Relaxed);
        }
        assert!(
            reqwest::Client::new().get(format!("http://{address}/")).send().await.is_err(),
            "no replica is ready"
        );
    }
}
