//! The values and rules of the server, without I/O. All other layers may import this module; it
//! imports none of them.

pub mod address;
pub mod certificates;
pub mod chat;
pub mod clock;
pub mod cursor;
pub mod epoch;
pub mod error;
pub mod event;
pub mod faults;
pub mod id;
pub mod json;
pub mod jump_watch;
pub mod limits;
pub mod message;
pub mod session;
pub mod text;
pub mod token;
pub mod user;

pub use chat::{Chat, ChatKind, LastMessage, Member, Role};
pub use clock::{Clock, Timestamp};
pub use epoch::PresentEpoch;
pub use error::{Code, Error, FieldError, Kind, Result};
pub use event::{Change, ChatEvent, Event, Topic};
pub use id::{ChatId, Epoch, MessageId, Rev, SessionId, UserId};
pub use limits::Limits;
pub use message::{Message, MessageBody, MessageKind};
pub use session::Session;
pub use user::{Account, User};

/// Declares an enum whose variants are stored and sent as lower-case words, with its conversions.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$variant_meta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// All variants.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word for this variant in the database and on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        // Written out, since the derive does not see a literal that comes from a macro.
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some([$($word),+]))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(word: String) -> Result<Self, Self::Error> {
                match word.as_str() {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("{word:?} is no {}", stringify!($name))),
                }
            }
        }
    };
}
pub(crate) use words;
