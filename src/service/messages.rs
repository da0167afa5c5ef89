//! Messages: sending, reading, editing, removing; read markers and typing.

use super::Service;
use super::appender::PendingSend;
use crate::model::limits::{SENDS, TYPING, WATCHES};
use crate::model::message::Draft;
use crate::model::session::Caller;
use crate::model::text::{self, Checks};
use crate::model::{Change, ChatEvent, ChatId, ChatKind, Code, Error, Event, Message, MessageId, Result, Topic, chat};
use crate::store::{Access, HistoryRange};

/// A message as a client asks to send it.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// 1 to 4096 characters after trimming.
    pub text: String,
    /// Idempotency key, 1 to 64 characters.
    pub client_id: Option<String>,
    /// The message that this one answers.
    pub reply_to: Option<MessageId>,
}

/// Which part of a history to read.
#[derive(Clone, Copy, Debug)]
pub struct HistoryPage {
    /// Before this message.
    pub before: Option<MessageId>,
    /// After this message.
    pub after: Option<MessageId>,
    /// How many; clamped to the configured maximum.
    pub max: Option<i64>,
}

impl Service {
    /// Checks a message and queues it for the next commit. In order: of two calls for one chat, the first to return is
    /// the first in the chat.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `unavailable`; later what [`PendingSend::outcome`] says.
    pub async fn begin_send(&self, caller: Caller, chat_id: ChatId, outgoing: Outgoing) -> Result<PendingSend> {
        let mut checks = Checks::new();
        let text = checks.keep("text", text::message(&outgoing.text));
        if let Some(client_id) = &outgoing.client_id {
            checks.keep("client_id", text::client_id(client_id));
        }
        if outgoing.reply_to.is_some_and(|id| id.0 < 1) {
            checks.fail("reply_to", "is no message id");
        }
        checks.done()?;
        self.limit(SENDS, &caller.user_id.to_string()).await?;
        self.appender.submit(Draft {
            chat_id,
            sender_id: caller.user_id,
            text,
            reply_to: outgoing.reply_to,
            client_id: outgoing.client_id,
        })
    }

    /// What the caller may see in a chat.
    ///
    /// # Errors
    /// `chat_not_found` for strangers.
    pub async fn access(&self, caller: Caller, chat_id: ChatId) -> Result<Access> {
        self.store.access(chat_id, caller.user_id).await?.ok_or(Error::new(Code::ChatNotFound))
    }

    /// A page of a chat's history, ascending, bounded in messages and in bytes as [`crate::store::Store::history`] says.
    ///
    /// # Errors
    /// `chat_not_found`.
    pub async fn history(&self, caller: Caller, chat_id: ChatId, page: HistoryPage) -> Result<Vec<Message>> {
        let range = HistoryRange { after: page.after, before: page.before, max: self.page("max", page.max)? };
        let messages = self.store.history(chat_id, caller.user_id, range).await?;
        if messages.is_empty() {
            // Nothing is there, or none of the caller's business.
            self.access(caller, chat_id).await?;
        }
        Ok(messages.into_iter().map(|message| message.for_viewer(caller.user_id)).collect())
    }

    /// One message.
    ///
    /// # Errors
    /// `chat_not_found`, `message_not_found`.
    pub async fn message(&self, caller: Caller, chat_id: ChatId, id: MessageId) -> Result<Message> {
        let Some(found) = self.store.message(chat_id, caller.user_id, id).await? else {
            self.access(caller, chat_id).await?;
            return Err(Code::MessageNotFound.into());
        };
        Ok(found.for_viewer(caller.user_id))
    }

    /// Changes the text of one's own message.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `chat_not_found`, `message_not_found`, `not_allowed`, `message_removed`.
    pub async fn edit_message(&self, caller: Caller, chat_id: ChatId, id: MessageId, text: &str) -> Result<Message> {
        let mut checks = Checks::new();
        let text = checks.keep("text", text::message(text));
        checks.done()?;
        self.limit(SENDS, &caller.user_id.to_string()).await?;
        let edited = self.store.edit_message(chat_id, id, caller.user_id, &text, self.clock.now()).await;
        let (message, changed) = self.announced(edited, || vec![Topic::Chat(chat_id)])?;
        if changed {
            let change = Change::MessageEdited(message.clone());
            self.bus.publish(Event::Chat(ChatEvent { chat_id, rev: message.rev, change }));
        }
        Ok(message)
    }

    /// Removes a message's text; its place stays.
    ///
    /// # Errors
    /// `rate_limited`, `chat_not_found`, `message_not_found`, `not_allowed`.
    pub async fn remove_message(&self, caller: Caller, chat_id: ChatId, id: MessageId) -> Result<()> {
        self.limit(SENDS, &caller.user_id.to_string()).await?;
        let removed = self.store.remove_message(chat_id, id, caller.user_id, self.clock.now()).await;
        let removed = self.announced(removed, || vec![Topic::Chat(chat_id)])?;
        if let Some(message) = removed {
            let rev = message.rev;
            self.bus.publish(Event::Chat(ChatEvent { chat_id, rev, change: Change::MessageRemoved(message) }));
        }
        Ok(())
    }

    /// Moves the caller's read marker forward.
    ///
    /// # Errors
    /// `rate_limited`, `chat_not_found`, `message_not_found` past the end.
    pub async fn mark_read(&self, caller: Caller, chat_id: ChatId, message_id: MessageId) -> Result<()> {
        self.count_read(caller.user_id)?;
        let moved = self.store.mark_read(chat_id, caller.user_id, message_id).await?;
        if let Some((kind, message_id)) = moved {
            // In a channel of thousands nobody needs to know how far each has read.
            let to_all = kind != ChatKind::Channel;
            self.bus.publish(Event::Read { chat_id, user_id: caller.user_id, message_id, to_all });
        }
        Ok(())
    }

    /// Tells the other members that the caller is typing, at most once in the pause of [`TYPING`], whichever replicas the
    /// caller's devices are on. A repetition costs neither a look-up nor an event.
    ///
    /// # Errors
    /// `rate_limited`; `chat_not_found`; `not_allowed` where the caller can't write.
    pub async fn typing(&self, caller: Caller, chat_id: ChatId) -> Result<()> {
        let now = self.clock.now();
        // The replica's own memory first: a client that repeats itself a hundred times a second asks nobody else.
        if !self.budgets.takes_typing(caller.user_id, chat_id, now) {
            return Ok(());
        }
        self.count_read(caller.user_id)?;
        // The pause is part of the protocol, so it holds where rate limits are off.
        if self.limiter.take(TYPING, &format!("{}:{chat_id}", caller.user_id), now).await.is_err() {
            return Ok(());
        }

        let access = self.access(caller, chat_id).await?;
        chat::permit(access.kind, access.role, chat::Action::Write)?;
        self.bus.publish(Event::Typing { chat_id, user_id: caller.user_id });
        Ok(())
    }

    /// Counts one `watch_presence` of the caller: each costs look-ups in the store.
    ///
    /// # Errors
    /// `rate_limited`.
    pub async fn count_watch(&self, caller: Caller) -> Result<()> {
        self.limit(WATCHES, &caller.user_id.to_string()).await
    }
}
