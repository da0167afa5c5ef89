CREATE INDEX chats_by_change ON chats (changed_slot, id);
