-- no-transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS chats_by_change ON chats (changed_slot, id);
