-- One row for each kind of background work. The replica that holds the lease does the work; the others wait.
CREATE TABLE worker_leases (
    worker        TEXT   COLLATE "C" PRIMARY KEY,
    holder        UUID   NOT NULL,
    expires_at_ms BIGINT NOT NULL,                      -- 0: released
    finished_at_ms BIGINT NOT NULL DEFAULT 0            -- the last time the work was done to its end
);

-- How far a consumer has applied the changes of a chat. Changes after `rev` are still to be applied.
CREATE TABLE consumer_positions (
    consumer TEXT   COLLATE "C" NOT NULL,
    chat_id  UUID   NOT NULL,
    rev      BIGINT NOT NULL,
    PRIMARY KEY (consumer, chat_id)
);
