-- Whether another user brought the member into the chat: such chats are counted apart from those of the member's own act.
-- Members of before count as their own, which at worst leaves them room for more.
ALTER TABLE members ADD COLUMN by_others BOOLEAN NOT NULL DEFAULT FALSE;
-- Whether users who share no chat with this one are kept from opening a chat with them and from adding them to one.
ALTER TABLE users ADD COLUMN refuse_strangers BOOLEAN NOT NULL DEFAULT FALSE;
