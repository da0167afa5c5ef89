-- Spent refresh tokens are bounded per session from now on. The surplus goes first: the locks of the ALTERs below are held
-- until the end, and must not be held while rows are deleted.
DELETE FROM refresh_tokens WHERE hash IN (
    SELECT hash FROM (
        SELECT hash, ROW_NUMBER() OVER (PARTITION BY session_id ORDER BY spent_at_ms DESC, hash) AS number
        FROM refresh_tokens WHERE spent_at_ms IS NOT NULL
    ) AS spent WHERE number > 32
);

-- How many logins went into the session after the first: its connections end with the login that opened them.
ALTER TABLE sessions ADD COLUMN logins BIGINT NOT NULL DEFAULT 0;

-- The hash of the refresh token that was exchanged for this one; empty: a login made it; NULL: made before this version.
ALTER TABLE refresh_tokens ADD COLUMN parent BYTEA;
