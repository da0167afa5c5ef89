-- The directory lists those whose name begins with the query in this order, a page at a time.
CREATE INDEX users_by_name_and_id ON users (name_key, id);
