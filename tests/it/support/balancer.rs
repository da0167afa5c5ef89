//! A load balancer as one has it in front of replicas: each connection goes to the one with the fewest.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::round_robin::pass_on;

/// Passes connections on until it is dropped.
pub struct Balancer {
    address: SocketAddr,
    pool: Arc<Mutex<Pool>>,
    _tasks: JoinSet<()>,
}

struct Pool {
    connections: Vec<usize>,
    left_out: Option<usize>,
}

impl Balancer {
    pub async fn start(servers: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pool = Arc::new(Mutex::new(Pool { connections: vec![0; servers.len()], left_out: None }));
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
    /// The server with the fewest connections, which then has one more.
    fn take(&mut self) -> usize {
        let servers = (0..self.connections.len()).filter(|number| Some(*number) != self.left_out);
        let number = servers.min_by_key(|number| self.connections[*number]).unwrap();
        self.connections[number] += 1;
        number
    }
}
