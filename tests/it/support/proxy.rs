//! A TCP proxy that injects faults between a server and a dependency: Postgres, Redis, another
//! replica.
//!
//! ```ignore
//! let proxy = Proxy::to("127.0.0.1:5432").await;
//! // … a server that connects to proxy.address() …
//! proxy.set(Mode::BlackHole);
//! ```
//! A mode applies at once, to open and to new connections. Bytes that arrive while nothing is
//! forwarded are forwarded afterwards, as after a network outage. All tasks end when the proxy is
//! dropped.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The direction of bytes. The server is the proxy's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// How the proxy treats its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forwards everything.
    Pass,
    /// Closes all connections, new ones included.
    Refuse,
    /// Keeps connections open, accepts new ones, and forwards nothing: neither bytes nor the end of
    /// a connection.
    BlackHole,
    /// [`Mode::BlackHole`] in one direction; the other direction passes.
    BlackHoleOneWay(Way),
    /// [`Mode::BlackHole`] for the connections that were open when the mode was set; later ones
    /// pass. A failover or a firewall that lost its state has this effect.
    Strand,
    /// Forwards everything after this delay, in each direction.
    Delay(Duration),
    /// Closes the connection that has forwarded this many bytes in this direction since the mode
    /// was set; then passes.
    CutAfter(Way, usize),
    /// Waits for these bytes in this direction, forwards the bytes before them, and closes that
    /// connection; then passes. Simulates a completed request whose answer was lost.
    CutAt(Way, Vec<u8>),
    /// Waits for these bytes in a request, and closes that connection before the first byte of the
    /// answer; then passes. The server has executed the request by then.
    CutAnswerTo(Vec<u8>),
}

/// A proxy on its own loopback port.
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    target: watch::Sender<String>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// A proxy in front of `target` (`host:port`), in [`Mode::Pass`].
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, _) = watch::channel(Mode::Pass);
        let (target, targets) = watch::channel(target.to_owned());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, targets, mode.clone()));
        Self { address, mode, target, _tasks: tasks }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` with the proxy's address in place of its own.
    pub fn in_url(&self, url: &str) -> String {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (authority, path) =
            rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
        let user =
            authority.rsplit_once('@').map(|(user, _)| format!("{user}@")).unwrap_or_default();
        let path = path.map(|path| format!("/{path}")).unwrap_or_default();

        format!("{scheme}://{user}{}{path}", self.address)
    }

    /// The `host:port` of a URL, for [`Proxy::to`].
    pub fn target_of(url: &str) -> String {
        let (_, rest) = url.split_once("://").unwrap();
        let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
        authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned()
    }

    /// Sets the mode for open and new connections.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Directs new connections to another target, as a changed DNS name does. Open connections
    /// stay.
    pub fn retarget(&self, target: &str) {
        self.target.send_replace(target.to_owned());
    }

    /// Closes all open connections.
    pub async fn cut_all(&self) {
        self.set(Mode::Refuse);
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.set(Mode::Pass);
    }

    /// The current mode: [`Mode::Pass`] again after a cut.
    pub fn mode(&self) -> Mode {
        self.mode.borrow().clone()
    }
}

/// Serves each connection in its own task. The tasks end with this one.
async fn accept(listener: TcpListener, target: watch::Receiver<String>, mode: watch::Sender<Mode>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((client, _)) = accepted else { return };
        let now = target.borrow().clone();
        connections.spawn(serve(client, now, mode.clone()));
    }
}

async fn serve(client: TcpStream, target: String, mode: watch::Sender<Mode>) {
    let mut changes = mode.subscribe();
    let fresh = *changes.borrow() == Mode::Strand;
    if *changes.borrow() == Mode::Refuse {
        return reset(&client);
    }

    // A connection made during a black hole reaches the server when the black hole ends.
    if changes.wait_for(|mode| *mode != Mode::BlackHole).await.is_err() {
        return;
    }

    let Ok(server) = TcpStream::connect(target).await else { return reset(&client) };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();

    let (asked, _) = watch::channel(false);
    let pump =
        |way| Pump { way, mode: mode.clone(), fresh, asked: asked.clone(), tail: Vec::new() };

    // When one direction ends, both sockets close.
    tokio::select! {
        () = pump(Way::ToServer).run(from_client, to_server) => {}
        () = pump(Way::ToClient).run(from_server, to_client) => {}
        _ = changes.wait_for(|mode| *mode == Mode::Refuse) => {}
    }
}

/// Makes the close a TCP reset, as of a port without a listener.
fn reset(client: &TcpStream) {
    let _ = client.set_zero_linger();
}

/// One direction of one connection.
struct Pump {
    way: Way,
    mode: watch::Sender<Mode>,
    /// Whether the connection was made during [`Mode::Strand`].
    fresh: bool,
    /// Whether the bytes of [`Mode::CutAnswerTo`] went to the server on this connection.
    asked: watch::Sender<bool>,
    /// The last forwarded bytes, in which a pattern may begin.
    tail: Vec<u8>,
}

/// What to do with the bytes just read.
enum Verdict {
    Forward,
    Later(Duration),
    /// Forwards this many bytes, and closes.
    Cut(usize),
}

impl Pump {
    async fn run(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut changes = self.mode.subscribe();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).await;
            // The end of a connection is held back as well.
            if changes.wait_for(|mode| !self.is_held(mode)).await.is_err() {
                return;
            }

            let bytes = match read {
                Ok(0) | Err(_) => return,
                Ok(length) => &buffer[..length],
            };

            let forwarded = match self.judge(bytes) {
                Verdict::Forward => bytes.len(),
                Verdict::Later(span) => {
                    tokio::time::sleep(span).await;
                    bytes.len()
                }
                Verdict::Cut(length) => {
                    let _ = to.write_all(&bytes[..length]).await;
                    return;
                }
            };

            if to.write_all(&bytes[..forwarded]).await.is_err() {
                return;
            }
        }
    }

    fn is_held(&self, mode: &Mode) -> bool {
        *mode == Mode::BlackHole
            || *mode == Mode::BlackHoleOneWay(self.way)
            || *mode == Mode::Strand && !self.fresh
    }

    fn judge(&mut self, bytes: &[u8]) -> Verdict {
        let mut verdict = Verdict::Forward;

        // One lock covers the decision and the change, so only one of several connections is cut.
        self.mode.send_if_modified(|mode| {
            match mode {
                Mode::Delay(span) => verdict = Verdict::Later(*span),
                Mode::CutAfter(way, left) if *way == self.way => {
                    if bytes.len() >= *left {
                        verdict = Verdict::Cut(*left);
                        *mode = Mode::Pass;
                        return true;
                    }
                    *left -= bytes.len();
                }
                Mode::CutAt(way, pattern) if *way == self.way => {
                    if let Some(at) = ends_at(&mut self.tail, bytes, pattern) {
                        verdict = Verdict::Cut(at.saturating_sub(pattern.len()));
                        *mode = Mode::Pass;
                        return true;
                    }
                }
                Mode::CutAnswerTo(pattern) if self.way == Way::ToServer => {
                    if ends_at(&mut self.tail, bytes, pattern).is_some() {
                        self.asked.send_replace(true);
                    }
                }
                Mode::CutAnswerTo(_) if *self.asked.borrow() => {
                    verdict = Verdict::Cut(0);
                    *mode = Mode::Pass;
                    return true;
                }
                _ => self.tail.clear(),
            }
            false
        });

        verdict
    }
}

/// The end of the pattern's first occurrence in `bytes`. The pattern may begin in `tail`, which
/// then keeps the last bytes of both.
fn ends_at(tail: &mut Vec<u8>, bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    let before = tail.len();
    tail.extend_from_slice(bytes);
    let found = tail.windows(pattern.len()).position(|window| window == pattern);
    let end = found.map(|start| start + pattern.len() - before);
    let keep = tail.len().saturating_sub(pattern.len() - 1);
    tail.drain(..keep);
    end
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A server that answers each `x` by `[x]`.
    async fn brackets(tasks: &mut JoinSet<()>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    while let Ok(byte) = client.read_u8().await {
                        client.write_all(&[b'[', byte, b']']).await.unwrap();
                    }
                });
            }
        });
        address
    }

    /// The answer to a byte within 200 ms; `None` once the connection is closed.
    async fn ask(stream: &mut TcpStream, byte: u8) -> Option<String> {
        let _ = stream.write_all(&[byte]).await;
        read(stream).await
    }

    async fn read(stream: &mut TcpStream) -> Option<String> {
        let mut received = Vec::new();
        let reading = async {
            while received.len() < 3 {
                match stream.read_u8().await {
                    Ok(byte) => received.push(byte),
                    Err(_) => return false,
                }
            }
            true
        };
        let open = tokio::time::timeout(Duration::from_millis(200), reading).await.unwrap_or(true);
        (open || !received.is_empty()).then(|| String::from_utf8(received).unwrap())
    }

    #[tokio::test]
    async fn it_passes_holds_back_delays_cuts_and_refuses() {
        let mut tasks = JoinSet::new();
        let proxy = Proxy::to(&brackets(&mut tasks).await).await;
        let open = || TcpStream::connect(proxy.address());
        let mut stream = open().await.unwrap();
        assert_eq!(ask(&mut stream, b'a').await.unwrap(), "[a]");

        for hole in [
            Mode::BlackHole,
            Mode::BlackHoleOneWay(Way::ToServer),
            Mode::BlackHoleOneWay(Way::ToClient),
        ] {
            proxy.set(hole);
            assert_eq!(ask(&mut stream, b'b').await.unwrap(), "", "held back");
            proxy.set(Mode::Pass);
            assert_eq!(read(&mut stream).await.unwrap(), "[b]", "and not lost");
        }

        proxy.set(Mode::Delay(Duration::from_millis(50)));
        let start = Instant::now();
        assert_eq!(ask(&mut stream, b'c').await.unwrap(), "[c]");
        assert!(start.elapsed() >= Duration::from_millis(100), "each way");

        proxy.set(Mode::CutAt(Way::ToClient, b"[d]".to_vec()));
        assert_eq!(ask(&mut stream, b'e').await.unwrap(), "[e]");
        assert_eq!(ask(&mut stream, b'd').await, None);
        assert_eq!(proxy.mode(), Mode::Pass);

        let mut stream = open().await.unwrap();
        proxy.set(Mode::CutAfter(Way::ToClient, 2));
        assert_eq!(ask(&mut stream, b'f').await.unwrap(), "[f");

        let (mut stream, mut other) = (open().await.unwrap(), open().await.unwrap());
        proxy.set(Mode::CutAnswerTo(b"g".to_vec()));
        assert_eq!(ask(&mut other, b'h').await.unwrap(), "[h]");
        assert_eq!(ask(&mut stream, b'g').await, None);
        assert_eq!(ask(&mut other, b'g').await.unwrap(), "[g]", "one cut");

        proxy.set(Mode::Refuse);
        assert_eq!(read(&mut other).await, None);
        let refused = open().await;
        assert!(match refused {
            Ok(mut stream) => ask(&mut stream, b'i').await.is_none(),
            Err(_) => true,
        });
        drop(proxy);
    }
}
