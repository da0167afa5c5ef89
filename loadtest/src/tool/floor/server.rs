//! Bare WebSocket servers, with the same socket settings as the real server.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};
use tokio_util::task::TaskTracker;

use super::commits::Commits;

/// Size of the read buffer; the same as in the real server.
const READ_BUFFER_BYTES: usize = 1024;
/// A frame that makes its connection a member.
pub const JOIN: &str = "join";
/// The first character of a frame that the server sends to all members.
pub const TO_ALL: char = '>';

type Socket = WebSocketStream<TcpStream>;
type Members = Arc<Mutex<Vec<Socket>>>;

/// Serves until the process ends. Echoes each frame; with `database`, commits it there first.
/// Prints `listening on http://ADDRESS`.
///
/// # Errors
/// If the port or the database is not available.
pub async fn serve(database: Option<String>) -> Result<(), String> {
    let commits = match database {
        Some(url) => Some(Commits::to_database(&url).await?),
        None => None,
    };

    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    println!("listening on http://{}", listener.local_addr().map_err(|error| error.to_string())?);

    let (members, tasks) = (Members::default(), TaskTracker::new());
    loop {
        let (stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
        tasks.spawn(converse(stream, members.clone(), commits.clone()));
    }
}

async fn converse(stream: TcpStream, members: Members, commits: Option<Commits>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let config =
        WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES).write_buffer_size(0);
    // The handshake is boxed, because otherwise its state would enlarge the task for its whole
    // life.
    let mut socket = Box::pin(accept_async_with_config(stream, Some(config))).await.ok()?;

    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        if text.as_str() == JOIN {
            members.lock().await.push(socket);
            return None;
        }
        if text.starts_with(TO_ALL) {
            for member in members.lock().await.iter_mut() {
                member.send(Message::Text(text.clone())).await.ok()?;
            }
        }

        if let Some(commits) = &commits {
            commits.insert(text.to_string()).await?;
        }
        socket.send(Message::Text(text)).await.ok()?;
    }
    None
}
