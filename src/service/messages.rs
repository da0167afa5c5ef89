//! Messages: sending, reading, editing and removing; read markers and typing.

use std::sync::Arc;

use super::access::access;
use super::appender::Appender;
use super::budget::Budgets;
use super::committer::PendingSend;
use super::page;
use super::publisher::Publisher;
use super::rates::RateLimits;
use crate::model::faults::{self, Mutant};
use crate::model::limits::{SENDS, TYPING};
use crate::model::message::Draft;
use crate::model::session::Caller;
use crate::model::text::{self, Checks};
use crate::model::{
    Change, ChatEvent, ChatId, ChatKind, Clock, Code, Event, Message, MessageBody, MessageId,
    Result, Topic, chat,
};
use crate::store::{HistoryRange, Store};

/// A client's request to send a message.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// 1 to 4096 characters after trimming.
    pub text: String,
    /// Idempotency key, 1 to 64 characters.
    pub client_id: Option<String>,
    /// The message that this is a reply to.
    pub reply_to: Option<MessageId>,
}

/// The part of a history to read.
#[derive(Clone, Copy, Debug)]
pub struct HistoryPage {
    /// Only messages before this message.
    pub before: Option<MessageId>,
    /// Only messages after this message.
    pub after: Option<MessageId>,
    /// Largest number of messages, capped at the configured maximum.
    pub max: Option<i64>,
}

/// The service for messages.
pub struct Messages {
    pub(super) store: Store,
    pub(super) appender: Appender,
    pub(super) rates: RateLimits,
    pub(super) budgets: Arc<Budgets>,
    pub(super) publisher: Publisher,
    pub(super) clock: Clock,
    pub(super) page_max: i64,
}

impl Messages {
    /// Checks a message and queues it for the next commit. Sends keep their order: of two calls for
    /// one chat, the message of the call that returns first comes first.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `unavailable`. The other errors come from
    /// [`PendingSend::outcome`].
    pub async fn begin_send(
        &self,
        caller: Caller,
        chat_id: ChatId,
        outgoing: Outgoing,
    ) -> Result<PendingSend> {
        let mut checks = Checks::new();
        let text = checks.keep("text", text::message(&outgoing.text));
        if let Some(client_id) = &outgoing.client_id {
            checks.keep("client_id", text::client_id(client_id));
        }
        if outgoing.reply_to.is_some_and(|id| id.0 < 1) {
            checks.fail("reply_to", "is not a message id");
        }
        checks.done()?;

        self.rates.count(SENDS, &caller.user_id.to_string()).await?;
        self.appender.submit(Draft {
            chat_id,
            sender_id: caller.user_id,
            body: MessageBody::Text(text),
            reply_to: outgoing.reply_to,
            client_id: faults::choose(Mutant::DedupeForgotten, outgoing.client_id, None),
        })
    }

    /// A page of a chat's history, ascending by id. [`Store::history`] bounds its messages and its
    /// bytes.
    ///
    /// # Errors
    /// `chat_not_found`.
    pub async fn history(
        &self,
        caller: Caller,
        chat_id: ChatId,
        page: HistoryPage,
    ) -> Result<Vec<Message>> {
        let max = page::size("max", page.max, self.page_max)?;
        let range = HistoryRange { after: page.after, before: page.before, max };

        let messages = self.store.history(chat_id, caller.user_id, range).await?;
        if messages.is_empty() {
            // Either the range has no messages, or the caller is not a member.
            access(&self.store, caller, chat_id).await?;
        }
        Ok(messages.into_iter().map(|message| message.for_viewer(caller.user_id)).collect())
    }

    /// A message as the caller sees it.
    ///
    /// # Errors
    /// `chat_not_found`, `message_not_found`.
    pub async fn view(&self, caller: Caller, chat_id: ChatId, id: MessageId) -> Result<Message> {
        let Some(found) = self.store.message(chat_id, caller.user_id, id).await? else {
            access(&self.store, caller, chat_id).await?;
            return Err(Code::MessageNotFound.into());
        };
        Ok(found.for_viewer(caller.user_id))
    }

    /// Changes the text of one of the caller's messages.
    ///
    /// # Errors
    /// `invalid_fields`, `rate_limited`, `chat_not_found`, `message_not_found`, `not_allowed`,
    /// `message_removed`.
    pub async fn edit(
        &self,
        caller: Caller,
        chat_id: ChatId,
        id: MessageId,
        text: &str,
    ) -> Result<Message> {
        let mut checks = Checks::new();
        let text = checks.keep("text", text::message(text));
        checks.done()?;

        self.rates.count(SENDS, &caller.user_id.to_string()).await?;
        let edited =
            self.store.edit_message(chat_id, id, caller.user_id, &text, self.clock.now()).await;
        let edited = self.publisher.resync_if_unknown(edited, || vec![Topic::Chat(chat_id)])?;

        let (message, changed) = edited;
        if changed {
            let change = Change::MessageEdited(message.clone());
            self.publisher.publish(Event::Chat(ChatEvent { chat_id, rev: message.rev, change }));
        }
        Ok(message)
    }

    /// Removes a message's text. The message keeps its id and its position.
    ///
    /// # Errors
    /// `rate_limited`, `chat_not_found`, `message_not_found`, `not_allowed`.
    pub async fn remove(&self, caller: Caller, chat_id: ChatId, id: MessageId) -> Result<()> {
        self.rates.count(SENDS, &caller.user_id.to_string()).await?;

        let removed =
            self.store.remove_message(chat_id, id, caller.user_id, self.clock.now()).await;
        let removed = self.publisher.resync_if_unknown(removed, || vec![Topic::Chat(chat_id)])?;

        if let Some(message) = removed {
            let rev = message.rev;
            let change = Change::MessageRemoved(message);
            self.publisher.publish(Event::Chat(ChatEvent { chat_id, rev, change }));
        }
        Ok(())
    }

    /// Moves the caller's read marker forward.
    ///
    /// # Errors
    /// `rate_limited`, `chat_not_found`; `message_not_found` beyond the last message.
    pub async fn mark_read(
        &self,
        caller: Caller,
        chat_id: ChatId,
        message_id: MessageId,
    ) -> Result<()> {
        self.budgets.count_read(caller.user_id)?;
        let moved = self.store.mark_read(chat_id, caller.user_id, message_id).await?;

        if let Some((kind, message_id)) = moved {
            // In a channel, each read marker would cost one frame for each of thousands of members.
            let to_all = kind != ChatKind::Channel;
            self.publisher.publish(Event::Read {
                chat_id,
                user_id: caller.user_id,
                message_id,
                to_all,
            });
        }
        Ok(())
    }

    /// Announces to the other members that the caller is typing, at most once in each pause of
    /// [`TYPING`] over all replicas. A repetition within the pause costs neither a query nor an
    /// event.
    ///
    /// # Errors
    /// `rate_limited`, `chat_not_found`; `not_allowed` if the caller can't write.
    pub async fn typing(&self, caller: Caller, chat_id: ChatId) -> Result<()> {
        // This replica's memory first, so that a client that repeats the frame costs no round trip.
        if !self.budgets.accepts_typing(caller.user_id, chat_id) {
            return Ok(());
        }

        self.budgets.count_read(caller.user_id)?;
        if !self.rates.try_after_pause(TYPING, &format!("{}:{chat_id}", caller.user_id)).await {
            return Ok(());
        }

        let access = access(&self.store, caller, chat_id).await?;
        chat::permit(access.kind, access.role, chat::Action::Write)?;
        self.publisher.publish(Event::Typing { chat_id, user_id: caller.user_id });
        Ok(())
    }
}
