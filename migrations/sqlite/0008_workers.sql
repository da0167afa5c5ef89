-- One row for each kind of background work. The process that holds the lease does the work; the others wait.
CREATE TABLE worker_leases (
    worker         TEXT    PRIMARY KEY,
    holder         BLOB    NOT NULL,
    expires_at_ms  INTEGER NOT NULL,                    -- 0: released
    finished_at_ms INTEGER NOT NULL DEFAULT 0           -- the last time the work was done to its end
);

-- How far a consumer has applied the changes of a chat. Changes after `rev` are still to be applied.
CREATE TABLE consumer_positions (
    consumer TEXT    NOT NULL,
    chat_id  BLOB    NOT NULL,
    rev      INTEGER NOT NULL,
    PRIMARY KEY (consumer, chat_id)
);
