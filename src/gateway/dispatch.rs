//! The work of each frame, except `sync`.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use super::answer::{answer_to, refusal};
use super::live::LiveConnection;
use crate::metrics;
use crate::model::limits::{REQUEST_MAX, WATCH_USERS_MAX, WATCHED_MAX};
use crate::model::message::Sent;
use crate::model::{Code, Error, Message, Result, UserId};
use crate::presence::{TooManyWatched, Watcher};
use crate::service::Outgoing;
use crate::wire::{ClientFrame, FrameId, ServerFrame};

impl LiveConnection {
    /// Does the work of a frame. The answer is returned, or comes later through `inflight`, so that
    /// the next frame need not wait for it.
    pub(super) async fn answer(
        &mut self,
        id: Option<FrameId>,
        frame: ClientFrame,
    ) -> Option<Bytes> {
        let (services, caller) = (self.gateway.services.clone(), self.caller);
        match frame {
            ClientFrame::Ping(_) => return Some(ServerFrame::Pong { id }.encode()),
            ClientFrame::Authenticate(_) => {
                return Some(refusal(id, &Code::AlreadyAuthenticated.into()));
            }
            ClientFrame::SendMessage(frame) => {
                let outgoing = Outgoing {
                    text: frame.text,
                    client_id: frame.client_id,
                    reply_to: frame.reply_to,
                };
                // Queued before the next frame is read, so a client's sends keep their order.
                match services.messages.begin_send(caller, frame.chat_id, outgoing).await {
                    Ok(pending) => {
                        let outcome = async move {
                            Some(answer_to(
                                id,
                                pending.outcome().await.map(Sent::into_message).map(Some),
                            ))
                        };
                        self.inflight.push(outcome.boxed());
                    }
                    Err(error) => return Some(refusal(id, &error)),
                }
            }
            ClientFrame::EditMessage(frame) => self.work(id, async move {
                services
                    .messages
                    .edit(caller, frame.chat_id, frame.message_id, &frame.text)
                    .await
                    .map(Some)
            }),
            ClientFrame::RemoveMessage(frame) => self.work(id, async move {
                services
                    .messages
                    .remove(caller, frame.chat_id, frame.message_id)
                    .await
                    .map(|()| None)
            }),
            ClientFrame::Read(frame) => {
                let read = async move {
                    services.messages.mark_read(caller, frame.chat_id, frame.message_id).await
                };
                self.work(id, async move { read.await.map(|()| None) });
            }
            ClientFrame::Typing(frame) => {
                let typing = self
                    .bounded(async move { services.messages.typing(caller, frame.chat_id).await });
                self.inflight.push(
                    async move { typing.await.err().map(|error| refusal(id, &error)) }.boxed(),
                );
            }
            ClientFrame::WatchPresence(frame) => {
                return self
                    .watch_presence(id.clone(), &frame.user_ids)
                    .await
                    .err()
                    .map(|error| refusal(id, &error));
            }
            // The connection handles it, since it needs the socket.
            ClientFrame::Sync(_) => {}
        }
        None
    }

    /// Watches users. The answer follows the `presence` of each user, so it goes through the outbox
    /// as well.
    async fn watch_presence(&mut self, id: Option<FrameId>, users: &[UserId]) -> Result<()> {
        let ack = id.clone().map(|id| ServerFrame::Ack { id: Some(id), message: None }.encode());
        let (presence, connection) = (self.gateway.hub.presence().clone(), self.connection.clone());
        if users.len() > WATCH_USERS_MAX {
            return Err(Error::field(
                "user_ids",
                format!("names more than {WATCH_USERS_MAX} users"),
            ));
        }

        if users.is_empty() {
            presence.unwatch_all(connection.id);
            if let Some(ack) = ack {
                connection.push_always(&ack);
            }
            return Ok(());
        }

        self.gateway.services.budgets.count_watch(self.caller).await?;
        let watcher: Arc<dyn Watcher> = connection.clone();
        let new = presence.watch(&watcher, users).map_err(|TooManyWatched| {
            Error::field(
                "user_ids",
                format!("would make more than {WATCHED_MAX} users watched by this connection"),
            )
        })?;

        let (users, shared) = (users.to_vec(), presence.clone());
        let resynced = self.bounded(async move { shared.resync(&users).await });
        let answer = async move {
            match resynced.await {
                Ok(()) => {
                    if let Some(ack) = ack {
                        connection.push_always(&ack);
                    }
                    None
                }
                // A refused frame has no effect.
                Err(error) => {
                    presence.unwatch(connection.id, &new);
                    Some(refusal(id, &error))
                }
            }
        };
        self.inflight.push(answer.boxed());
        Ok(())
    }

    /// Does work and sends its acknowledgement.
    fn work(
        &mut self,
        id: Option<FrameId>,
        work: impl Future<Output = Result<Option<Message>>> + Send + 'static,
    ) {
        let work = self.bounded(work);
        self.inflight.push(async move { Some(answer_to(id, work.await)) }.boxed());
    }

    /// Does work that continues if the connection ends or the time for the answer is over, since it
    /// may be half done. The work holds one of the user's permits while it runs. If none is free,
    /// it waits for one in the order of this socket's frames; meanwhile the socket is not read
    /// beyond [`INFLIGHT_FRAMES_MAX`](crate::model::limits::INFLIGHT_FRAMES_MAX) of them.
    fn bounded<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> impl Future<Output = Result<T>> + Send + 'static {
        let mut waiting = Box::pin(self.gateway.services.budgets.frame_permit(self.caller.user_id));
        // Polled here, it joins the queue behind the earlier frames. It is awaited in the task:
        // this connection may be busy with a client that does not read, and would then keep a
        // permit from the user's other devices.
        let taken = (&mut waiting).now_or_never();
        if taken.is_none() {
            metrics::frame_waited();
        }

        let task = self.gateway.tasks.spawn(async move {
            let _permit = match taken {
                Some(taken) => taken?,
                None => waiting.await?,
            };
            work.await
        });

        async move {
            match tokio::time::timeout(REQUEST_MAX, task).await {
                Ok(Ok(result)) => result,
                Ok(Err(failed)) => Err(Error::internal(failed)),
                Err(elapsed) => Err(Error::unavailable(elapsed)),
            }
        }
    }
}
