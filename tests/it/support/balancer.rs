//! A load balancer in front of replicas.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How the balancer chooses a replica.
#[derive(Clone, Copy)]
pub enum Choice {
    /// Round robin. The worst case: consecutive connections reach different replicas.
    Next,
    /// The one with the fewest connections, as in a deployment.
    Fewest,
}

/// Forwards connections until it is dropped.
pub struct Balancer {
    pub address: SocketAddr,
    pool: Arc<Mutex<Pool>>,
    _tasks: JoinSet<()>,
}

struct Pool {
    choice: Choice,
    next: usize,
    connections: Vec<usize>,
    excluded: Option<usize>,
}

impl Balancer {
    pub async fn start(servers: Vec<SocketAddr>, choice: Choice) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();

        let pool = Pool { choice, next: 0, connections: vec![0; servers.len()], excluded: None };
        let pool = Arc::new(Mutex::new(pool));

        let mut tasks = JoinSet::new();
        let shared = pool.clone();
        tasks.spawn(async move {
            let mut forwards = JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    Some(_) = forwards.join_next() => continue,
                };
                let Ok((client, _)) = accepted else { return };

                let number = shared.lock().take();
                let (pool, server) = (shared.clone(), servers[number]);
                forwards.spawn(async move {
                    forward(client, server).await;
                    pool.lock().connections[number] -= 1;
                });
            }
        });

        Self { address, pool, _tasks: tasks }
    }

    /// `http://host:port`
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Excludes a server from new connections, as if it were not ready; `None` includes all.
    pub fn leave_out(&self, number: Option<usize>) {
        self.pool.lock().excluded = number;
    }
}

impl Pool {
    /// Chooses a server, and counts a connection to it.
    fn take(&mut self) -> usize {
        let count = self.connections.len();
        let servers = (0..count).map(|step| (self.next + step) % count);
        let mut servers = servers.filter(|number| Some(*number) != self.excluded);

        let number = match self.choice {
            Choice::Next => servers.next(),
            Choice::Fewest => servers.min_by_key(|number| self.connections[*number]),
        };

        let number = number.unwrap();
        self.next = number + 1;
        self.connections[number] += 1;
        number
    }
}

/// Forwards bytes both ways until the server closes.
async fn forward(mut client: TcpStream, server: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));

    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.split(), server.split());

    let up = async {
        // The server may still send after the client has closed its side.
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
        std::future::pending::<()>().await;
    };

    let down = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };

    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
