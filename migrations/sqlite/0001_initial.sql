-- Times are milliseconds since 1970, in UTC, bound by the server; ids are UUIDv7.
-- SQLite compares text byte by byte already.

CREATE TABLE users (
    id            BLOB   PRIMARY KEY,
    login         TEXT   UNIQUE,            -- NULL once the account is removed
    name          TEXT   NOT NULL,
    name_key      TEXT  ,                   -- lower case, for the directory; NULL once removed
    password_hash TEXT   NOT NULL,
    created_at_ms INTEGER NOT NULL,
    removed_at_ms INTEGER,
    last_seen_at_ms INTEGER                             -- online then, to about a minute; NULL: never
);
CREATE INDEX users_by_name ON users (name_key);

CREATE TABLE invites (
    code          TEXT   PRIMARY KEY,
    user_id       BLOB   REFERENCES users (id) ON DELETE CASCADE,   -- NULL: made by the operator
    uses_left     INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL
);
CREATE INDEX invites_by_user ON invites (user_id, created_at_ms);
CREATE INDEX invites_by_expiry ON invites (expires_at_ms);

CREATE TABLE sessions (
    id                    BLOB   PRIMARY KEY,
    user_id               BLOB   NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    token_hash            BLOB   NOT NULL UNIQUE,
    device                TEXT,
    ip                    TEXT,
    created_at_ms         INTEGER NOT NULL,
    last_seen_at_ms       INTEGER NOT NULL,
    token_expires_at_ms   INTEGER NOT NULL,
    expires_at_ms         INTEGER NOT NULL               -- the refresh token's end, and so the session's
);
CREATE INDEX sessions_by_user ON sessions (user_id, created_at_ms);
CREATE INDEX sessions_by_expiry ON sessions (expires_at_ms);

-- Spent refresh tokens stay as long as their session: a second use tells that one was stolen.
CREATE TABLE refresh_tokens (
    hash        BLOB   PRIMARY KEY,
    session_id  BLOB   NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    spent_at_ms INTEGER                                  -- NULL: the session's current one
);
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id);

-- The row is the head of the chat's log: its lock orders all changes, `rev` numbers them.
CREATE TABLE chats (
    id               BLOB   PRIMARY KEY,
    kind             TEXT   NOT NULL,
    name             TEXT,                              -- groups and channels
    self_user        BLOB   UNIQUE,                     -- the one self chat of a user
    pair_low         UUID,                              -- the one private chat of a pair, smaller id first
    pair_high        UUID,
    created_at_ms    INTEGER NOT NULL,
    rev              INTEGER NOT NULL,
    renamed_rev      INTEGER NOT NULL,                   -- the rev of the last change of the chat itself
    forgotten_rev    INTEGER NOT NULL DEFAULT 0,         -- who left up to this rev is no longer remembered
    member_count     INTEGER NOT NULL,
    activity_at_ms   INTEGER NOT NULL,                   -- order of the inbox: last message, or creation
    last_message_id  INTEGER NOT NULL DEFAULT 0,
    last_sender_id   UUID,
    last_text        TEXT,
    last_kind        TEXT,
    last_sent_at_ms  INTEGER,
    removed_at_ms    INTEGER,                            -- removed for all; a job clears what is left
    UNIQUE (pair_low, pair_high)
);
CREATE INDEX chats_removed ON chats (removed_at_ms) WHERE removed_at_ms IS NOT NULL;

CREATE TABLE members (
    chat_id              BLOB   NOT NULL,
    user_id              BLOB   NOT NULL REFERENCES users (id),
    role                 TEXT   NOT NULL,
    joined_at_ms         INTEGER NOT NULL,
    joined_rev           INTEGER NOT NULL,
    rev                  INTEGER NOT NULL,               -- the chat's rev that last changed this row
    left_rev             INTEGER,                        -- NULL: a member now
    left_at_ms           INTEGER,
    last_read_message_id INTEGER NOT NULL,
    cleared_message_id   INTEGER NOT NULL DEFAULT 0,     -- the caller removed the history up to here, for themselves
    hidden               BOOLEAN NOT NULL DEFAULT FALSE,-- … and the chat from their list, until something new comes
    PRIMARY KEY (chat_id, user_id)
);
CREATE INDEX members_by_user ON members (user_id) WHERE left_rev IS NULL;
CREATE INDEX members_by_rev ON members (chat_id, rev);
CREATE INDEX members_left ON members (left_at_ms) WHERE left_at_ms IS NOT NULL;

-- No foreign keys: a message is written under its chat's lock by a checked member, and a check per row would cost more than the insert.
CREATE TABLE messages (
    chat_id       BLOB   NOT NULL,
    id            INTEGER NOT NULL,
    rev           INTEGER NOT NULL,
    sent_rev      INTEGER NOT NULL,                      -- the rev that sent it
    sender_id     BLOB   NOT NULL,
    kind          TEXT   NOT NULL,
    text          TEXT,                                 -- NULL once removed
    reply_to      INTEGER,
    client_id     TEXT  ,
    fingerprint   BYTEA,                                -- of the body first sent under client_id
    sent_at_ms    INTEGER NOT NULL,
    edited_at_ms  INTEGER,
    removed_at_ms INTEGER,
    PRIMARY KEY (chat_id, id)
);
CREATE UNIQUE INDEX messages_by_client_id ON messages (chat_id, sender_id, client_id) WHERE client_id IS NOT NULL;
CREATE INDEX messages_by_rev ON messages (chat_id, rev);

-- The key by which replicas know each other's words on Redis, which anybody there could write. One row.
CREATE TABLE cluster_keys (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    key BLOB NOT NULL
);
