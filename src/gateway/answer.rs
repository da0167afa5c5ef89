//! The frames that answer a frame.

use bytes::Bytes;

use crate::metrics;
use crate::model::{Error, Kind, Message, Result};
use crate::wire::{FrameId, ServerFrame};

/// The acknowledgement of a frame, or its refusal.
pub(super) fn answer_to(id: Option<FrameId>, result: Result<Option<Message>>) -> Bytes {
    match result {
        Ok(message) => ServerFrame::Ack { id, message }.encode(),
        Err(error) => refusal(id, &error),
    }
}

/// The frame that refuses a frame. This is the boundary that logs failures inside the server.
pub(super) fn refusal(id: Option<FrameId>, error: &Error) -> Bytes {
    metrics::error(error.code, "gateway");
    if matches!(error.kind(), Kind::Internal | Kind::Unavailable) {
        tracing::error!(
            code = error.code.as_str(),
            cause = error.source.as_deref().map(tracing::field::display),
            "a frame failed"
        );
    }
    ServerFrame::Error {
        id,
        code: error.code.as_str().to_owned(),
        detail: error.detail.clone().into_owned(),
        errors: error.fields.clone(),
        retry_after_ms: error.retry_after_ms,
    }
    .encode()
}
