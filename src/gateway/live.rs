//! The state of an authenticated connection, and its writes.

use std::sync::Arc;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt};

use super::state::Gateway;
use crate::hub::Connection;
use crate::hub::connection::TakeOutcome;
use crate::model::limits::{Bucket, WRITE_BATCH_BYTES_MAX, WRITE_MAX};
use crate::model::session::Caller;
use crate::wire::CloseCode;

/// The answer to a frame whose work is in progress; `None` if the frame has no answer, or its
/// answer is in the outbox.
pub(super) type PendingAnswer = BoxFuture<'static, Option<Bytes>>;

/// An authenticated connection.
pub(super) struct LiveConnection {
    pub gateway: Arc<Gateway>,
    pub caller: Caller,
    pub connection: Arc<Connection>,
    /// Answers to frames whose work is in progress.
    pub inflight: FuturesUnordered<PendingAnswer>,
    pub bad_frames: u32,
    pub flooded_frames: u32,
    pub bucket: Bucket,
}

impl Drop for LiveConnection {
    /// Runs even after a panic, so that no user stays online without a connection.
    fn drop(&mut self) {
        self.gateway.hub.unregister(&self.connection);
    }
}

impl LiveConnection {
    /// The state of a connection that the hub has registered.
    pub(super) fn new(gateway: Arc<Gateway>, caller: Caller, connection: Arc<Connection>) -> Self {
        Self {
            gateway,
            caller,
            connection,
            inflight: FuturesUnordered::new(),
            bad_frames: 0,
            flooded_frames: 0,
            bucket: Bucket::default(),
        }
    }

    /// Writes these frames, and all answers and events that are ready, until nothing is left.
    pub(super) async fn write_all(
        &mut self,
        socket: &mut WebSocket,
        mut out: Vec<Bytes>,
    ) -> Result<(), CloseCode> {
        loop {
            while let Some(Some(answer)) = self.inflight.next().now_or_never() {
                out.extend(answer);
            }
            let taken = self.connection.take(&mut out, WRITE_BATCH_BYTES_MAX);
            let idle = out.is_empty();
            self.write(socket, std::mem::take(&mut out)).await?;
            match taken {
                TakeOutcome::Close(reason) => return Err(reason.into()),
                TakeOutcome::Open if idle => return Ok(()),
                TakeOutcome::Open => {}
            }
        }
    }

    /// Writes frames, then flushes once. A client that does not read them within [`WRITE_MAX`] is
    /// too slow.
    pub(super) async fn write(
        &mut self,
        socket: &mut WebSocket,
        frames: Vec<Bytes>,
    ) -> Result<(), CloseCode> {
        if frames.is_empty() {
            return Ok(());
        }
        if let Some(reason) = self.connection.cut_off() {
            return Err(reason.into());
        }

        let writing = async {
            for frame in frames {
                let text = Utf8Bytes::try_from(frame).map_err(|_| CloseCode::InternalError)?;
                socket.feed(Message::Text(text)).await.map_err(|_| CloseCode::Normal)?;
            }
            socket.flush().await.map_err(|_| CloseCode::Normal)
        };

        tokio::select! {
            biased;
            written = writing => written,
            () = self.connection.closing() => Err(self.closing_code()),
            () = tokio::time::sleep(WRITE_MAX) => Err(CloseCode::TooSlow),
        }
    }

    /// The reason for which the hub closes this connection.
    fn closing_code(&self) -> CloseCode {
        let mut rest = Vec::new();
        loop {
            if let TakeOutcome::Close(reason) = self.connection.take(&mut rest, usize::MAX) {
                return reason.into();
            }
        }
    }
}
