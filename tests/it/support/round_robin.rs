//! A load balancer that makes the worst of it: each connection goes to another replica than the one before.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes each connection on to the next of some servers, until it is dropped.
pub struct RoundRobin {
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl RoundRobin {
    pub async fn start(servers: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut passed_on = JoinSet::new();
            for server in servers.into_iter().cycle() {
                let Ok((client, _)) = listener.accept().await else { return };
                passed_on.spawn(pass_on(client, server));
            }
        });
        Self { address, _tasks: tasks }
    }
}

/// Passes on what is said either way, until one of them ends it.
pub(super) async fn pass_on(mut client: TcpStream, server: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
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
