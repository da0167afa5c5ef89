//! The cost of a durable consumer for sends: positions that the consumer stores by itself, beside
//! an outbox row that each send would write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use starling::cluster::BoxFuture;
use starling::model::message::Draft;
use starling::model::{ChatId, Clock, MessageBody, Result, UserId};
use starling::store::{Changes, Creation, NewChat, NewUser, Opened, Store};
use starling::tasks::Tasks;
use starling::worker::{Consumer, consumer};
use tokio_util::sync::CancellationToken;

use super::database::Database;

/// Chats, and so drafts of a batch.
const CHATS: usize = 64;
/// Batches of one measurement.
const BATCHES: usize = 200;
/// Measurements of each design, in turns.
const ROUNDS: usize = 7;

/// An outbox: one narrow row for each message, written by the statement that inserts messages.
const OUTBOX: &str = "
    CREATE TABLE outbox (id BIGSERIAL PRIMARY KEY, chat_id UUID NOT NULL, rev BIGINT NOT NULL);
    CREATE FUNCTION fill_outbox() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO outbox (chat_id, rev) SELECT chat_id, rev FROM added;
        RETURN NULL;
    END $$;
    CREATE TRIGGER fill_outbox AFTER INSERT ON messages REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION fill_outbox();";

/// Applies nothing: the cost of the mechanism alone.
struct Idle;

impl Consumer for Idle {
    fn name(&self) -> &'static str {
        "bench"
    }

    fn apply<'a>(&'a self, _: ChatId, _: Option<&'a Changes>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

pub async fn measure(server: &str) {
    let database = Database::create(server).await;
    let (store, clock) = (&database.store, Clock::system());
    let drafts = drafts(store, &clock).await;
    let mut control = PgConnection::connect(&database.url).await.unwrap();
    control.execute(OUTBOX).await.unwrap();

    let [mut bare, mut outbox, mut positions] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        enable_outbox(&mut control, false).await;
        bare.push(send(store, &clock, &drafts).await);

        let (consuming, stop) = start(store, &clock);
        positions.push(send(store, &clock, &drafts).await);
        stop.cancel();
        consuming.await.unwrap();

        enable_outbox(&mut control, true).await;
        outbox.push(send(store, &clock, &drafts).await);
        control.execute("TRUNCATE outbox").await.unwrap();
    }

    let [bare, outbox, positions] = [bare, outbox, positions].map(super::median);
    let ratio = |time: Duration| time.as_secs_f64() / bare.as_secs_f64();
    println!("a batch of {CHATS} sends to as many chats: {:.2?}", bare / per_batch());
    println!("beside a consumer with positions: {:.2} times as long", ratio(positions));
    println!("with an outbox row for each send: {:.2} times as long", ratio(outbox));
    database.remove().await;
}

fn per_batch() -> u32 {
    u32::try_from(BATCHES).unwrap()
}

fn start(store: &Store, clock: &Clock) -> (tokio::task::JoinHandle<()>, CancellationToken) {
    let stop = CancellationToken::new();
    let consumer: Arc<dyn Consumer> = Arc::new(Idle);
    let run = consumer::run(consumer, store.clone(), clock.clone(), stop.clone());
    (Tasks::default().spawn(run), stop)
}

async fn enable_outbox(control: &mut PgConnection, enabled: bool) {
    let state = if enabled { "ENABLE" } else { "DISABLE" };
    let sql = format!("ALTER TABLE messages {state} TRIGGER fill_outbox");
    control.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// The time of all batches.
async fn send(store: &Store, clock: &Clock, drafts: &[Draft]) -> Duration {
    let start = Instant::now();
    for _ in 0..BATCHES {
        for sent in store.append(drafts, clock.now()).await.unwrap() {
            sent.unwrap();
        }
    }
    start.elapsed()
}

/// One draft for each of the chats.
async fn drafts(store: &Store, clock: &Clock) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for _ in 0..CHATS {
        let (now, id) = (clock.now(), UserId::new(clock.now(), &mut rand::rng()));
        let login = format!("u{:016x}", rand::random::<u64>());
        let user = NewUser {
            id,
            name: login.clone(),
            login,
            password_hash: "none".to_owned(),
            created_at: now,
        };
        store.create_user(&user).await.unwrap();

        let kind = Creation::SelfChat;
        let chat_id = ChatId::new(now, &mut rand::rng());
        let chat = NewChat { id: chat_id, kind, creator: id, now, chats_max: i64::MAX };
        assert!(matches!(store.create_chat(&chat).await.unwrap(), Opened::New(_)));
        drafts.push(Draft {
            chat_id,
            sender_id: id,
            body: MessageBody::Text(
                "A message of ordinary length, as people write them.".to_owned(),
            ),
            reply_to: None,
            client_id: None,
        });
    }
    drafts
}
