//! A load balancer in front of replicas.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Where a connection goes.
#[derive(Clone, Copy)]
pub enum Choice {
    /// To another replica than the one before, which makes the worst of it.
    Next,
    /// To the one with the fewest, as in a deployment.
    Fewest,
}

/// Passes connections on until it is dropped.
pub struct Balancer {
    pub address: SocketAddr,
    pool: Arc<Mutex<Pool>>,
    _tasks: JoinSet<()>,
}

struct Pool {
    choice: Choice,
    turn: usize,
    connections: Vec<usize>,
    left_out: Option<usize>,
}

impl Balancer {
    pub async fn start(servers: Vec<SocketAddr>, choice: Choice) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pool = Pool { choice, turn: 0, connections: vec![0; servers.len()], left_out: None };
        let pool = Arc::new(Mutex::new(pool));
        let mut tasks = JoinSet::new();
        let shared = pool.clone();
        tasks.spawn(async move {
            let mut passed_on = JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    Some(_) = passed_on.join_next() => continue,
                };
                let Ok((client, _)) = accepted else { return };
                let number = shared.lock().take();
                let (pool, server) = (shared.clone(), servers[number]);
                passed_on.spawn(async move {
                    pass_on(client, server).await;
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

    /// Sends no new connection to this server, as to one that is not ready.
    pub fn leave_out(&self, number: Option<usize>) {
        self.pool.lock().left_out = number;
    }
}

impl Pool {
    /// The server whose turn it is, which then has one connection more.
    fn take(&mut self) -> usize {
        let count = self.connections.len();
        let servers = (0..count).map(|step| (self.turn + step) % count);
        let mut servers = servers.filter(|number| Some(*number) != self.left_out);
        let number = match self.choice {
            Choice::Next => servers.next(),
            Choice::Fewest => servers.min_by_key(|number| self.connections[*number]),
        };
        let number = number.unwrap();
        self.turn = number + 1;
        self.connections[number] += 1;
        number
    }
}

/// Passes on what is said either way, until one of them ends it.
async fn pass_on(mut client: TcpStream, server: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.split(), server.split());
    let up = async {
        // A server that takes no more may still have something to say.
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
