-- Which history the revisions of all chats belong to. One row, made by the first process that serves. A process that finds
-- another `origin` than its file's, or an older `mark` than it served, replaces the epoch, and every client reloads.
CREATE TABLE log_epoch (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    epoch  BLOB    NOT NULL,
    origin TEXT    NOT NULL,            -- the file's inode and time of birth
    mark   INTEGER NOT NULL DEFAULT 0   -- grows with every change of a chat; `starling.epoch` keeps a copy beside the file
);

-- Triggers, so that the processes of the previous version and the operator's commands count as well.
CREATE TRIGGER log_epoch_changed AFTER UPDATE OF rev ON chats BEGIN
    UPDATE log_epoch SET mark = mark + 1;
END;
CREATE TRIGGER log_epoch_created AFTER INSERT ON chats BEGIN
    UPDATE log_epoch SET mark = mark + 1;
END;

-- When a chat changed last, in slots of 10 s: what changed since a moment is a range of an index, and not a look at every
-- chat. A slot, so that the index is written once a slot and chat. Rows of before count as unchanged.
ALTER TABLE chats ADD COLUMN changed_slot INTEGER NOT NULL DEFAULT 0;
CREATE TRIGGER chats_changed AFTER UPDATE OF rev ON chats BEGIN
    UPDATE chats SET changed_slot = unixepoch() / 10 WHERE id = NEW.id AND changed_slot <> unixepoch() / 10;
END;
CREATE TRIGGER chats_created AFTER INSERT ON chats BEGIN
    UPDATE chats SET changed_slot = unixepoch() / 10 WHERE id = NEW.id;
END;
