-- Which history the revisions of all chats belong to. One row, made by the first replica that serves. A replica that finds
-- another `origin` than its server's (a promoted standby, a restored copy) replaces the epoch, and every client reloads.
CREATE TABLE log_epoch (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    epoch  UUID    NOT NULL,
    origin TEXT    NOT NULL             -- system identifier / database / table `chats` / timeline of the write-ahead log
);

-- When a chat changed last, in slots of 10 s by the database's clock: what changed since a moment is a range of an index,
-- and not a look at every chat. A slot, since an indexed column that changed with every send would make each of them write
-- to all indexes of the row; so that happens once a slot and chat, and the others stay in their page (HOT).
-- A trigger, so that no statement can forget it and the replicas of the previous version write it as well.
-- Its index comes in a migration of its own. Rows of before count as unchanged.
ALTER TABLE chats ADD COLUMN changed_slot BIGINT NOT NULL DEFAULT 0;

CREATE FUNCTION starling_chat_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_slot := FLOOR(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()) / 10);
    RETURN NEW;
END
$$;
CREATE TRIGGER chats_changed BEFORE INSERT OR UPDATE OF rev ON chats
    FOR EACH ROW EXECUTE FUNCTION starling_chat_changed();
