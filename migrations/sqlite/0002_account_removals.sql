-- Accounts that have ended and whose chats are still to be left, one chat a transaction. The row goes with the last one.
CREATE TABLE account_removals (
    user_id       BLOB    PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    removed_at_ms INTEGER NOT NULL
);
CREATE INDEX account_removals_by_age ON account_removals (removed_at_ms);
