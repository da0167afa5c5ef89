//! The listener: accepts connections, bounds their number, and closes those that miss a deadline.
//!
//! The task of each connection also checks its deadlines ([`line`]). hyper alone would wait forever
//! for the first byte, for the next request of HTTP/2, and for a client that does not read.

mod body;
mod files;
mod line;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{ServiceExt, service_fn};

use crate::metrics;
use crate::model::Error;
use crate::model::limits::{
    ConnectionTimeouts, HEAD_BYTES_MAX, HTTP2_SEND_BYTES_MAX, HTTP2_STREAMS_MAX, REQUEST_MAX,
    REQUEST_READ_MAX, SEND_BUFFER_BYTES, UNACKNOWLEDGED_MAX,
};
use crate::service::{Admission, SharedAddressSlot};
use body::PacedBody;
use line::{Line, Slots, Verdict};

pub use files::{raise_limit as raise_file_limit, warning as file_warning};

/// Connections to the internal port, from scrapers and probes.
pub const INTERNAL_CONNECTIONS_MAX: usize = 256;
/// Connections that the kernel queues before they are accepted. Many clients reconnect at once.
const BACKLOG: u32 = 1024;
/// Pause after a failed accept. The system has run out of a resource, such as open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on an address. Each accepted connection inherits the options of the socket.
///
/// # Errors
/// A sentence that names the settings, if the system refuses the address.
pub fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        #[cfg(target_os = "linux")]
        {
            let ms = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX);
            rustix::net::sockopt::set_tcp_user_timeout(&socket, ms)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error: io::Error| {
        Error::internal(format!(
            "can't listen on {address}: {error}; \
             choose another address with STARLING_LISTEN or STARLING_INTERNAL_LISTEN"
        ))
    })
}

/// The bounds and timeouts of a listener's connections.
pub struct Rules {
    pub connections_max: usize,
    /// Counts unauthenticated connections by address; `None` counts none.
    pub admission: Option<Arc<Admission>>,
    /// Peers that are not counted here: their clients are counted by `X-Forwarded-For`.
    pub trusted_proxies: Vec<IpNet>,
    pub patience: ConnectionTimeouts,
}

impl Rules {
    /// Takes an address slot for a new connection.
    ///
    /// # Errors
    /// The name of the bound that the address has reached.
    fn address_slot(&self, peer: SocketAddr) -> Result<SharedAddressSlot, &'static str> {
        let ip = peer.ip().to_canonical();
        match &self.admission {
            Some(admission) if !self.trusted_proxies.iter().any(|net| net.contains(&ip)) => {
                admission.enter(ip).map(|slot| SharedAddressSlot::new(Some(slot)))
            }
            _ => Ok(SharedAddressSlot::default()),
        }
    }
}

/// Serves a router until `stop`, then waits for the requests in progress.
pub async fn serve(listener: TcpListener, router: Router, rules: Rules, stop: CancellationToken) {
    let slots = Slots::new(rules.connections_max);
    let (leave, connections) = (CancellationToken::new(), TaskTracker::new());
    let builder = builder();

    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection; retried after a pause");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };

        let address_slot = match rules.address_slot(peer) {
            Ok(slot) => slot,
            Err(bound) => {
                metrics::connection_refused(bound);
                continue;
            }
        };
        let Some(line) = slots.take(address_slot) else {
            metrics::connection_refused("connections_max");
            continue;
        };

        // Frames are small: Nagle's algorithm would delay them.
        let _ = stream.set_nodelay(true);
        let serving =
            serve_connection(&builder, &router, stream, peer, line, rules.patience, leave.clone());
        connections.spawn(serving);
    }

    drop(listener);
    connections.close();
    leave.cancel();
    if tokio::time::timeout(REQUEST_READ_MAX + REQUEST_MAX, connections.wait()).await.is_err() {
        tracing::warn!("some requests did not end in time and are abandoned");
    }
}

/// Serves a connection until it ends or is upgraded. Errors of a connection are not logged: clients
/// cause them.
fn serve_connection(
    builder: &auto::Builder<TokioExecutor>,
    router: &Router,
    stream: TcpStream,
    peer: SocketAddr,
    line: Arc<Line>,
    patience: ConnectionTimeouts,
    leave: CancellationToken,
) -> impl Future<Output = ()> + 'static {
    let io = TokioIo::new(SlotStream { stream, line: line.clone() });
    let (router, request_line) = (router.clone(), line.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (router, begun) = (router.clone(), request_line.begin());
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(begun.guard());
        async move {
            let response = router.oneshot(request).await?;
            Ok::<_, Infallible>(response.map(|body| PacedBody::new(body, begun)))
        }
    });
    let connection =
        builder.serve_connection_with_upgrades(io, TowerToHyperService::new(service)).into_owned();

    async move {
        let mut connection = pin!(connection);
        let mut leaving = None;
        loop {
            let next_check = match line.look(&patience, leaving, Instant::now()) {
                Verdict::Fine(until) => until,
                Verdict::Idle => {
                    metrics::connection_closed("idle");
                    leaving = Some(Instant::now());
                    connection.as_mut().graceful_shutdown();
                    continue;
                }
                Verdict::Overdue(reason) => {
                    if leaving.is_none() {
                        metrics::connection_closed(reason);
                    }
                    return;
                }
            };

            tokio::select! {
                biased;
                _ = connection.as_mut() => return,
                () = line.evicted() => return,
                () = leave.cancelled(), if leaving.is_none() => {
                    leaving = Some(Instant::now());
                    connection.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep_until(next_check) => {}
            }
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_READ_MAX)
        .max_buf_size(HEAD_BYTES_MAX);

    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(REQUEST_READ_MAX));
    builder
}

/// A socket that releases its connection's slots when it is closed, also after its upgrade to a
/// WebSocket.
struct SlotStream {
    stream: TcpStream,
    line: Arc<Line>,
}

impl Drop for SlotStream {
    fn drop(&mut self) {
        self.line.closed();
    }
}

impl AsyncRead for SlotStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for SlotStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_accepted_connection_inherits_the_socket_options_of_its_listener() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let ms = rustix::net::sockopt::tcp_user_timeout(&stream).unwrap();
        assert_eq!(u128::from(ms), UNACKNOWLEDGED_MAX.as_millis());
        // Linux doubles the requested size.
        assert_eq!(
            rustix::net::sockopt::socket_send_buffer_size(&stream).unwrap(),
            2 * SEND_BUFFER_BYTES as usize
        );
    }
}
