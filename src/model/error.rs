//! The error type of HTTP and the gateway: a stable code, a sentence for people, and the kind,
//! which determines the HTTP status or close code.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The result of an operation that the server may refuse or that may fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An invalid field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// The field's path, such as `text` or `member_ids[3]`.
    pub field: String,
    /// Why the field is invalid, as a phrase that follows its name.
    pub message: String,
}

/// The kind of an error. HTTP turns it into a status, the gateway into an answer or a close code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request cannot be parsed.
    Malformed,
    /// The request has no valid token.
    Unauthenticated,
    /// The caller is authenticated and sees the resource, but lacks the right.
    Forbidden,
    /// The resource does not exist, or the caller must not learn of it.
    NotFound,
    /// The resource does not support the method.
    MethodNotAllowed,
    /// The request contradicts the present state of the resource.
    Conflict,
    /// The body or frame exceeds its bound.
    TooLarge,
    /// The `Content-Type` of the body is not JSON.
    UnsupportedMediaType,
    /// The request can be parsed, but a field is invalid.
    Invalid,
    /// The caller exceeded a rate limit.
    RateLimited,
    /// A dependency is down or busy. The change was not made, or its outcome is unknown; a repeated
    /// send with the same `client_id` returns the message if it was committed.
    Unavailable,
    /// The server has a defect.
    Internal,
}

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $code:literal, $kind:ident, $title:literal;)+) => {
        /// The machine-readable reason of an error. The codes are part of the protocol and never
        /// change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])+ $name),+ }

        impl Code {
            /// All codes, for the API documents.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The code on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),+ }
            }

            /// The kind of all errors with this code.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind),+ }
            }

            /// A short summary, the same for every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),+ }
            }
        }
    };
}

codes! {
    /// The body or frame is not JSON.
    MalformedJson = "malformed_json", Malformed, "The body is not valid JSON";
    /// The request or frame cannot be read, for a reason other than its JSON.
    MalformedRequest = "malformed_request", Malformed, "The request can't be read";
    /// The token is missing, unknown or expired.
    NotAuthenticated = "not_authenticated", Unauthenticated, "A valid token is needed";
    /// The login is unknown or the password is wrong. The answer does not show which, so that
    /// logins cannot be probed.
    InvalidCredentials = "invalid_credentials", Unauthenticated, "Login or password is wrong";
    /// The refresh token is unknown, expired or spent.
    InvalidRefreshToken = "invalid_refresh_token", Unauthenticated,
        "The refresh token is not valid";
    /// The caller's role lacks the right.
    NotAllowed = "not_allowed", Forbidden, "Your role does not allow this";
    /// The request comes from a page of another origin.
    OriginNotAllowed = "origin_not_allowed", Forbidden, "This origin is not allowed";
    /// The password that confirms a change of the account is wrong.
    WrongPassword = "wrong_password", Forbidden, "The password is wrong";
    /// The user accepts chats only from users who share a chat with them. If the request names
    /// several users, the error does not show which of them refuses.
    UserUnreachable = "user_unreachable", Forbidden, "You can't bring this user into a chat";
    /// The path does not exist.
    RouteNotFound = "route_not_found", NotFound, "There is no such path";
    /// The chat does not exist, or the caller is not a member.
    ChatNotFound = "chat_not_found", NotFound, "There is no such chat";
    /// The chat has no message at this position.
    MessageNotFound = "message_not_found", NotFound, "There is no such message";
    /// The account does not exist.
    UserNotFound = "user_not_found", NotFound, "There is no such user";
    /// The user is not a member of the chat.
    MemberNotFound = "member_not_found", NotFound, "There is no such member";
    /// The caller has no such session.
    SessionNotFound = "session_not_found", NotFound, "There is no such session";
    /// The invite is unknown, used up or expired.
    InviteNotFound = "invite_not_found", NotFound, "There is no such invite";
    /// The path does not support the method.
    MethodNotAllowed = "method_not_allowed", MethodNotAllowed, "This method does not apply here";
    /// Another account has the login.
    LoginTaken = "login_taken", Conflict, "This login is taken";
    /// The sender used the `client_id` for another message in the chat.
    ClientIdReused = "client_id_reused", Conflict, "This client_id was used for another message";
    /// The message was removed.
    MessageRemoved = "message_removed", Conflict, "The message was removed";
    /// The user is already a member of the chat.
    AlreadyMember = "already_member", Conflict, "This user is a member already";
    /// The chat would have no owner: another member must become an owner first.
    LastOwner = "last_owner", Conflict, "The last owner must make another member an owner first";
    /// The chat has the maximum number of members.
    MemberLimit = "member_limit_reached", Conflict, "The chat is full";
    /// The user has the maximum number of chats.
    ChatLimit = "chat_limit_reached", Conflict, "The limit of chats is reached";
    /// The user has the maximum number of open invites.
    InviteLimit = "invite_limit_reached", Conflict, "The limit of open invites is reached";
    /// Chats of this kind do not support the action.
    WrongChatKind = "wrong_chat_kind", Conflict, "Chats of this kind do not support this";
    /// The client sent a second `sync` on one connection.
    AlreadySynced = "already_synced", Conflict, "sync is allowed once per connection";
    /// The client sent `authenticate` on an authenticated connection.
    AlreadyAuthenticated = "already_authenticated", Conflict,
        "This connection is authenticated already";
    /// The body or frame is too large.
    TooLarge = "too_large", TooLarge, "The body is too large";
    /// The `Content-Type` is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type", UnsupportedMediaType,
        "The body must be application/json";
    /// One or more fields are invalid.
    InvalidFields = "invalid_fields", Invalid, "Some fields are not valid";
    /// The gateway has no frame of this type.
    UnknownFrame = "unknown_frame", Invalid, "There is no such frame";
    /// The caller exceeded a rate limit.
    RateLimited = "rate_limited", RateLimited, "Too many requests";
    /// The database or another dependency is unavailable or overloaded.
    Unavailable = "unavailable", Unavailable, "The server can't do this right now";
    /// The server has a defect.
    Internal = "internal", Internal, "The server made a mistake";
}

/// Why a request or frame was refused or failed.
#[derive(Clone, Debug)]
pub struct Error {
    /// The stable reason.
    pub code: Code,
    /// One sentence about this occurrence, for the client. It contains no secret and no internal
    /// cause.
    pub detail: Cow<'static, str>,
    /// The invalid fields.
    pub fields: Vec<FieldError>,
    /// How long the client should wait before it tries again, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// The cause, for the log of the boundary that handles it. Never sent to a client.
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error whose detail is the title of its code.
    pub fn new(code: Code) -> Self {
        Self::with_detail(code, code.title())
    }

    /// An error with a detail of its own.
    pub fn with_detail(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), fields: Vec::new(), retry_after_ms: None, source: None }
    }

    /// `invalid_fields` for one field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// `invalid_fields` for several fields.
    pub fn fields(fields: Vec<FieldError>) -> Self {
        let detail = fields
            .iter()
            .map(|f| format!("{}: {}", f.field, f.message))
            .collect::<Vec<_>>()
            .join("; ");
        Self { fields, ..Self::with_detail(Code::InvalidFields, detail) }
    }

    /// Refused by a rate limit; the client may retry after `retry_after_ms`.
    pub fn rate_limited(retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(Code::RateLimited) }
    }

    /// A dependency is unavailable; the client may retry after a second.
    pub fn unavailable(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Arc::new(source)), ..Self::overloaded() }
    }

    /// A queue is full; the client may retry after a second.
    pub fn overloaded() -> Self {
        Self { retry_after_ms: Some(1000), ..Self::new(Code::Unavailable) }
    }

    /// A defect of the server, with its cause.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Some(Arc::from(source.into())), ..Self::new(Code::Internal) }
    }

    /// The kind of the error's code.
    pub fn kind(&self) -> Kind {
        self.code.kind()
    }
}

impl From<Code> for Error {
    fn from(code: Code) -> Self {
        Self::new(code)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
