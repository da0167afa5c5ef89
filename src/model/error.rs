//! One error for HTTP and the gateway: a stable code, a sentence for people, and what the cause
//! means for the caller.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The result of everything that can be refused or fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// The field's path, such as `text` or `member_ids[3]`.
    pub field: String,
    /// What is wrong with it, in words.
    pub message: String,
}

/// What an error means for the caller. HTTP turns it into a status, the gateway into an answer or a
/// close code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can't be read at all.
    Malformed,
    /// No valid session.
    Unauthenticated,
    /// Known, seen, and still not allowed.
    Forbidden,
    /// It isn't there, or is none of the caller's business.
    NotFound,
    /// The resource has no such method.
    MethodNotAllowed,
    /// It contradicts the state of things.
    Conflict,
    /// The body or frame is over its bound.
    TooLarge,
    /// The body is not JSON by its own word.
    UnsupportedMediaType,
    /// Readable, but a field is wrong.
    Invalid,
    /// Too often.
    RateLimited,
    /// A dependency is down or busy; nothing was done, or the same `client_id` tells.
    Unavailable,
    /// A fault of the server.
    Internal,
}

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $code:literal, $kind:ident, $title:literal;)+) => {
        /// The machine-readable reason of an error. The words are part of the contract and never
        /// change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])+ $name),+ }

        impl Code {
            /// Every code, for the documents.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The code on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),+ }
            }

            /// What it means for the caller.
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
    /// Not JSON.
    MalformedJson = "malformed_json", Malformed, "The body is not valid JSON";
    /// Neither JSON nor anything else that can be read.
    MalformedRequest = "malformed_request", Malformed, "The request can't be read";
    /// No, an unknown or an expired token.
    NotAuthenticated = "not_authenticated", Unauthenticated, "A valid token is needed";
    /// Unknown login or wrong password: which of them is not told.
    InvalidCredentials = "invalid_credentials", Unauthenticated, "Login or password is wrong";
    /// The refresh token is unknown, expired or spent.
    InvalidRefreshToken = "invalid_refresh_token", Unauthenticated, "The refresh token is not valid";
    /// The caller's role lacks the right.
    NotAllowed = "not_allowed", Forbidden, "Your role does not allow this";
    /// The request comes from a page of another origin.
    OriginNotAllowed = "origin_not_allowed", Forbidden, "This origin is not allowed";
    /// Wrong password where one confirms an action.
    WrongPassword = "wrong_password", Forbidden, "The password is wrong";
    /// The user wants to hear only from those who share a chat with them. Among several users it is
    /// not said which.
    UserUnreachable = "user_unreachable", Forbidden, "You can't bring this user into a chat";
    /// No such path.
    RouteNotFound = "route_not_found", NotFound, "There is nothing here";
    /// No such chat, or none of the caller's.
    ChatNotFound = "chat_not_found", NotFound, "There is no such chat";
    /// No such message.
    MessageNotFound = "message_not_found", NotFound, "There is no such message";
    /// No such account.
    UserNotFound = "user_not_found", NotFound, "There is no such user";
    /// No such member in this chat.
    MemberNotFound = "member_not_found", NotFound, "There is no such member";
    /// No such session of the caller's.
    SessionNotFound = "session_not_found", NotFound, "There is no such session";
    /// Unknown, used up or expired invite.
    InviteNotFound = "invite_not_found", NotFound, "There is no such invite";
    /// The path has no such method.
    MethodNotAllowed = "method_not_allowed", MethodNotAllowed, "This method does not apply here";
    /// The login belongs to somebody.
    LoginTaken = "login_taken", Conflict, "This login is taken";
    /// The `client_id` was used for another message.
    ClientIdReused = "client_id_reused", Conflict, "This client_id was used for another message";
    /// The message was removed.
    MessageRemoved = "message_removed", Conflict, "The message was removed";
    /// Already a member.
    AlreadyMember = "already_member", Conflict, "This user is a member already";
    /// The last owner must hand over first.
    LastOwner = "last_owner", Conflict, "The last owner must hand over first";
    /// The chat has all the members that it may have.
    MemberLimit = "member_limit_reached", Conflict, "The chat is full";
    /// The user has all the chats that one may have.
    ChatLimit = "chat_limit_reached", Conflict, "The limit of chats is reached";
    /// The user has all the open invites that one may have.
    InviteLimit = "invite_limit_reached", Conflict, "The limit of open invites is reached";
    /// What can't be done to a chat of this kind.
    WrongChatKind = "wrong_chat_kind", Conflict, "A chat of this kind does not have that";
    /// `sync` was asked for twice.
    AlreadySynced = "already_synced", Conflict, "sync comes once per connection";
    /// The connection is authenticated already.
    AlreadyAuthenticated = "already_authenticated", Conflict, "This connection is authenticated already";
    /// Body or frame too large.
    TooLarge = "too_large", TooLarge, "The body is too large";
    /// Not `application/json`.
    UnsupportedMediaType = "unsupported_media_type", UnsupportedMediaType, "The body must be application/json";
    /// One or more fields are wrong.
    InvalidFields = "invalid_fields", Invalid, "Some fields are not valid";
    /// The gateway does not know this frame.
    UnknownFrame = "unknown_frame", Invalid, "There is no such frame";
    /// Too often.
    RateLimited = "rate_limited", RateLimited, "Too many requests";
    /// Database or another dependency away, or overloaded.
    Unavailable = "unavailable", Unavailable, "The server can't do this right now";
    /// A fault of the server.
    Internal = "internal", Internal, "The server made a mistake";
}

/// Why something was refused or failed.
#[derive(Clone, Debug)]
pub struct Error {
    /// The stable reason.
    pub code: Code,
    /// One sentence about this occurrence. Never a secret, never a cause from inside.
    pub detail: Cow<'static, str>,
    /// The fields at fault.
    pub fields: Vec<FieldError>,
    /// When to come back, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// The cause, for the log of the boundary that handles it. Never sent.
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that says no more than its code.
    pub fn new(code: Code) -> Self {
        Self::with_detail(code, code.title())
    }

    /// An error with a sentence of its own.
    pub fn with_detail(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), fields: Vec::new(), retry_after_ms: None, source: None }
    }

    /// One wrong field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// Wrong fields, each named.
    pub fn fields(fields: Vec<FieldError>) -> Self {
        let names = fields
            .iter()
            .map(|f| format!("{}: {}", f.field, f.message))
            .collect::<Vec<_>>()
            .join("; ");
        Self { fields, ..Self::with_detail(Code::InvalidFields, names) }
    }

    /// Refused for now; come back in `retry_after_ms`.
    pub fn rate_limited(retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(Code::RateLimited) }
    }

    /// A dependency is away; come back in a second.
    pub fn unavailable(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Arc::new(source)), ..Self::overloaded() }
    }

    /// A queue is full; come back in a second.
    pub fn overloaded() -> Self {
        Self { retry_after_ms: Some(1000), ..Self::new(Code::Unavailable) }
    }

    /// A fault of ours.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Some(Arc::from(source.into())), ..Self::new(Code::Internal) }
    }

    /// What it means for the caller.
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
