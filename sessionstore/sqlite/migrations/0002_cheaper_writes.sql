-- SPDX-License-Identifier: MIT
-- Cheaper writes and statistics: an activity leaves all indexes alone, a create writes one index less,
-- and counters answer get_session_stats.

ALTER TABLE sessions
  ADD COLUMN swept_activity DATETIME NOT NULL DEFAULT '';

UPDATE sessions
   SET swept_activity = last_activity
 WHERE status = 'active';

DROP INDEX IF EXISTS idx_sessions_child_id;

DROP INDEX IF EXISTS idx_sessions_active_child;

DROP INDEX IF EXISTS idx_sessions_activity;

-- Serves get_active_sessions(child_id), end_sessions and, a status at a time, get_sessions_for_child.
CREATE INDEX idx_sessions_child_id ON sessions (child_id, status, started_at, id);

-- Serves the sweep by idle time. Not on last_activity: each activity would then write the index, too.
-- swept_activity stays behind, and a sweep that finds the session alive moves it on.
CREATE INDEX idx_sessions_activity ON sessions (swept_activity) WHERE status = 'active';

-- Another program may set last_activity back: the sweep must find the session all the same.
CREATE TRIGGER sessions_activity_went_back AFTER UPDATE OF last_activity ON sessions
WHEN new.last_activity < new.swept_activity
BEGIN
    UPDATE sessions
       SET swept_activity = new.last_activity
     WHERE id = new.id;
END;

-- Serves get_session_stats. Kept by the triggers below, whoever writes.
CREATE TABLE sessionstore_counts (
    day      DATE NOT NULL,         -- on which the sessions started, UTC
    status   VARCHAR(20) NOT NULL,
    sessions INTEGER NOT NULL,

    PRIMARY KEY (day, status)
) WITHOUT ROWID;

INSERT INTO sessionstore_counts (day, status, sessions)
SELECT substr(started_at, 1, 10), status, count(*)
  FROM sessions
 GROUP BY 1, 2;

CREATE TRIGGER sessions_inserted AFTER INSERT ON sessions
BEGIN
    INSERT INTO sessionstore_counts (day, status, sessions)
    VALUES (substr(new.started_at, 1, 10), new.status, 1)
        ON CONFLICT (day, status) DO UPDATE SET sessions = sessions + 1;
END;

CREATE TRIGGER sessions_deleted AFTER DELETE ON sessions
BEGIN
    UPDATE sessionstore_counts
       SET sessions = sessions - 1
     WHERE day = substr(old.started_at, 1, 10)
       AND status = old.status;
END;

CREATE TRIGGER sessions_changed AFTER UPDATE OF status, started_at ON sessions
WHEN new.status <> old.status OR new.started_at <> old.started_at
BEGIN
    UPDATE sessionstore_counts
       SET sessions = sessions - 1
     WHERE day = substr(old.started_at, 1, 10)
       AND status = old.status;
    INSERT INTO sessionstore_counts (day, status, sessions)
    VALUES (substr(new.started_at, 1, 10), new.status, 1)
        ON CONFLICT (day, status) DO UPDATE SET sessions = sessions + 1;
END;
