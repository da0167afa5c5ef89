//! The body of an answer. It goes to hyper in pieces, so that the listener sees whether the client
//! reads it.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

use super::line::Request;
use crate::model::limits::ANSWER_PIECE_BYTES;

/// A body in pieces of at most [`ANSWER_PIECE_BYTES`]. The request is in progress until the body is
/// dropped.
pub(super) struct PacedBody {
    body: Body,
    /// Bytes of `body` that hyper has not received yet.
    rest: Bytes,
    request: Request,
}

impl PacedBody {
    pub(super) fn new(body: Body, request: Request) -> Self {
        if !body.is_end_stream() {
            request.moved();
        }
        Self { body, rest: Bytes::new(), request }
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }

        self.request.moved();
        let length = self.rest.len().min(ANSWER_PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
        let mut sum = SizeHint::new();
        sum.set_lower(hint.lower() + rest);

        if let Some(upper) = hint.upper() {
            sum.set_upper(upper + rest);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::Slots;
    use super::*;
    use crate::service::SharedAddressSlot;

    #[tokio::test]
    async fn a_body_is_sent_in_pieces_and_reports_its_remaining_length() {
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let line = Slots::new(1).take(SharedAddressSlot::default()).unwrap();
        let mut body = PacedBody::new(Body::from(bytes.clone()), line.begin());

        let mut received = Vec::new();
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((bytes.len() - received.len()) as u64));
            let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let piece = next.unwrap().unwrap().into_data().unwrap();
            assert!(piece.len() <= ANSWER_PIECE_BYTES);
            received.extend_from_slice(&piece);
        }
        assert_eq!(received, bytes);
    }
}
