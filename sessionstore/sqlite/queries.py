# SPDX-License-Identifier: MIT
"""Every SQL statement of the engine, a constant each.

A name is verb + object + qualifier. A comment says what the statement serves, by which index, and
why it has its shape. Values are bound by name and never formatted in; the only text put together
here is that of the upper-case constants below. SQL never asks for the time: what it compares with
comes from the moment of the call. Nothing is executed here.
"""

_COLUMNS = """id, child_id, status, started_at, ended_at, last_activity, data, metadata,
       interaction_count"""

# The rule "has not timed out" for SQL; expiry.py has it for Python. The plus signs keep SQLite from
# choosing an index, or a range of one, by a column. _LIVE finds by status; _IS_LIVE only filters
# what was found by its id, even if ANALYZE has seen a table with a single row.
_LIVE = """status = 'active'
   AND +last_activity > :idle_cutoff
   AND +started_at > :lifetime_cutoff"""
_IS_LIVE = f"+{_LIVE}"

# -- Transactions and settings ---------------------------------------------------------------------

BEGIN_READ = "BEGIN DEFERRED"
BEGIN_WRITE = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
SAVEPOINT = "SAVEPOINT sweep"
ROLLBACK_TO_SAVEPOINT = "ROLLBACK TO sweep"
RELEASE_SAVEPOINT = "RELEASE sweep"

SET_JOURNAL_WAL = "PRAGMA journal_mode = WAL"
SET_JOURNAL_SIZE_LIMIT = "PRAGMA journal_size_limit = 8388608"  # bytes, when the log restarts
# Pages. All writers wait for a checkpoint: with 8,000 pages, touches at 100 tasks are a tenth
# faster, but one in a hundred takes 60 ms longer.
SET_WAL_AUTOCHECKPOINT = "PRAGMA wal_autocheckpoint = 2000"
# Bytes, of a new file. A touch writes one page: 100 touches in a batch take a third less time than
# with pages of 4,096 bytes.
SET_PAGE_SIZE = "PRAGMA page_size = 2048"
SET_SECURE_DELETE = "PRAGMA secure_delete = ON"  # what is erased is overwritten with zeros
SET_TEMP_STORE_MEMORY = "PRAGMA temp_store = MEMORY"  # no temporary file ever holds data
SET_QUERY_ONLY = "PRAGMA query_only = ON"
SET_SYNCHRONOUS_FULL = "PRAGMA synchronous = FULL"
SET_SYNCHRONOUS_NORMAL = "PRAGMA synchronous = NORMAL"
SET_BUSY_TIMEOUT = "PRAGMA busy_timeout = 100"  # milliseconds
SET_BUSY_TIMEOUT_NONE = "PRAGMA busy_timeout = 0"

CHECKPOINT_TRUNCATE = "PRAGMA wal_checkpoint(TRUNCATE)"

# Serves the sweep: another number than at the last one means that another connection has committed.
SELECT_DATA_VERSION = "PRAGMA data_version"

# -- Writing ---------------------------------------------------------------------------------------

# Serves create_session. A plain INSERT: an id that is there already is an error, never an update.
INSERT_SESSION = f"""
INSERT INTO sessions ({_COLUMNS}, swept_activity)
VALUES (:id, :child_id, :status, :started_at, :ended_at, :last_activity, :data, :metadata,
        :interaction_count, :last_activity)
"""

# The same for many new sessions, an array each: one statement hands the GIL over once.
INSERT_SESSIONS = f"""
INSERT INTO sessions ({_COLUMNS}, swept_activity)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
       json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
       json_extract(value, '$[5]')
  FROM json_each(:rows)
"""

# Serves update_activity of one session, by primary key. A session that has ended or timed out stays
# as it is; max(): last_activity never moves backwards.
UPDATE_SESSION_TOUCHED = f"""
UPDATE sessions
   SET last_activity     = max(last_activity, :now),
       interaction_count = interaction_count + 1
 WHERE id = :id
   AND {_IS_LIVE}
"""

# The same for many sessions, {id: how often}, in one statement, which hands the GIL over once. By
# primary key for each key.
UPDATE_SESSIONS_TOUCHED = f"""
UPDATE sessions
   SET last_activity     = max(last_activity, :now),
       interaction_count = interaction_count + value
  FROM json_each(:touches)
 WHERE sessions.id = key
   AND {_IS_LIVE}
"""

# Which of them are live, if fewer were touched than asked for. By primary key.
SELECT_LIVE_IDS = f"""
SELECT id
  FROM sessions
 WHERE id IN (SELECT key FROM json_each(:touches))
   AND {_IS_LIVE}
"""

# Serves update_session, first half: what is changed. By primary key.
SELECT_LIVE_SESSION = f"""
SELECT {_COLUMNS}
  FROM sessions
 WHERE id = :id
   AND {_IS_LIVE}
"""

# Serves update_session, second half, in the same transaction. By primary key.
UPDATE_SESSION_EDITED = """
UPDATE sessions
   SET last_activity = :last_activity,
       data          = :data,
       metadata      = :metadata
 WHERE id = :id
"""

# Serves end_session. By primary key; one caller finds the session live, and no other. max(): a
# session that was ahead of the clock does not end before its last activity.
UPDATE_SESSION_ENDED = f"""
UPDATE sessions
   SET status   = :status,
       ended_at = max(last_activity, :now),
       metadata = json_set(metadata, '$.end_reason', :reason)
 WHERE id = :id
   AND {_IS_LIVE}
RETURNING {_COLUMNS}
"""

# Serves end_sessions. idx_sessions_child_id finds the active sessions of one child; without figures
# from ANALYZE, SQLite might read those of all children.
UPDATE_SESSIONS_ENDED_BY_CHILD = f"""
UPDATE sessions INDEXED BY idx_sessions_child_id
   SET status   = :status,
       ended_at = max(last_activity, :now),
       metadata = json_set(metadata, '$.end_reason', :reason)
 WHERE child_id = :child_id
   AND id IS NOT :except_id
   AND {_LIVE}
RETURNING {_COLUMNS}
"""

# Serves the sweep: what may have been idle for too long, for all that the sweep before knew.
# idx_sessions_activity, as one range.
SELECT_SESSIONS_IDLE = """
SELECT id, started_at, last_activity
  FROM sessions INDEXED BY idx_sessions_activity
 WHERE status = 'active'
   AND swept_activity <= :idle_cutoff
 ORDER BY swept_activity
 LIMIT :limit
"""

# Serves the sweep where there is a max_lifetime: what has lived for too long. idx_sessions_status.
SELECT_SESSIONS_AGED = """
SELECT id, started_at, last_activity
  FROM sessions INDEXED BY idx_sessions_status
 WHERE status = 'active'
   AND started_at <= :lifetime_cutoff
 ORDER BY started_at
 LIMIT :limit
"""

# Serves the sweep, second half, in the same transaction: {id: ended_at}, since SQLite would know
# ended_at in milliseconds only. By primary key.
UPDATE_SESSIONS_TIMED_OUT = f"""
UPDATE sessions
   SET status   = 'timeout',
       ended_at = value,
       metadata = json_set(metadata, '$.end_reason', 'timeout')
  FROM json_each(:ends)
 WHERE sessions.id = key
   AND +status = 'active'
RETURNING {_COLUMNS}
"""

# Serves the sweep, third part: those that are alive come due again when they may have timed out. By
# primary key.
UPDATE_SESSIONS_SWEPT = """
UPDATE sessions
   SET swept_activity = last_activity
 WHERE id IN (SELECT value FROM json_each(:ids))
"""

# Serves the sweep: whether a session is ahead of the clock by more than the timeout, since the
# clock was set back. idx_sessions_activity: a sweep that looked at the session has moved it there.
SELECT_SESSION_AHEAD = """
SELECT 1
  FROM sessions INDEXED BY idx_sessions_activity
 WHERE status = 'active'
   AND swept_activity > :latest
 LIMIT 1
"""

# Brings those back to the clock, where it has stayed for a whole timeout. idx_sessions_activity.
UPDATE_SESSIONS_AHEAD = f"""
UPDATE sessions
   SET last_activity  = min(last_activity, :now),
       swept_activity = :now
 WHERE id IN (SELECT id
                FROM sessions INDEXED BY idx_sessions_activity
               WHERE status = 'active' AND swept_activity > :latest
               LIMIT :limit)
RETURNING {_COLUMNS}
"""

# Serves delete_session. By primary key, whatever the status.
DELETE_SESSION = "DELETE FROM sessions WHERE id = :id"

# Serves purge_ended_sessions, in short transactions. idx_sessions_ended_at finds the oldest.
DELETE_SESSIONS_ENDED_BEFORE = """
DELETE FROM sessions
 WHERE id IN (SELECT id
                FROM sessions
               WHERE ended_at <= :ended_before
               ORDER BY ended_at
               LIMIT :limit)
RETURNING id
"""

# -- Reading ---------------------------------------------------------------------------------------

# Serves get_session, by primary key.
SELECT_SESSION = f"SELECT {_COLUMNS} FROM sessions WHERE id = :id"

# The same for many sessions, as one row: for each row, SQLite hands the GIL over. Not for large
# ones, since the JSON is read with the GIL held.
SELECT_SMALL_SESSIONS = f"""
SELECT json_group_array(json_array({_COLUMNS}))
  FROM sessions
 WHERE id IN (SELECT value FROM json_each(:ids))
   AND length(data) + length(metadata) <= :limit
"""

# Serves get_active_sessions and iter_active_sessions. Keyset: idx_sessions_status starts at the
# last session of the page before, or at ('', ''), which sorts before all.
SELECT_SESSIONS_ACTIVE = f"""
SELECT {_COLUMNS}
  FROM sessions
 WHERE {_LIVE}
   AND (started_at, id) > (:after_started_at, :after_id)
 ORDER BY started_at, id
 LIMIT :limit
"""

# The same for one child. idx_sessions_child_id, whatever ANALYZE has seen.
SELECT_SESSIONS_ACTIVE_BY_CHILD = f"""
SELECT {_COLUMNS}
  FROM sessions INDEXED BY idx_sessions_child_id
 WHERE child_id = :child_id
   AND {_LIVE}
   AND (started_at, id) > (:after_started_at, :after_id)
 ORDER BY started_at, id
 LIMIT :limit
"""

_OF_CHILD = f"SELECT {_COLUMNS} FROM sessions WHERE child_id = :child_id AND status ="

# Serves get_sessions_for_child. SQLite reads idx_sessions_child_id backwards for each status and
# merges the four, no further than the limit asks.
SELECT_SESSIONS_BY_CHILD = f"""
{_OF_CHILD} 'active' UNION ALL
{_OF_CHILD} 'ended' UNION ALL
{_OF_CHILD} 'timeout' UNION ALL
{_OF_CHILD} 'error'
 ORDER BY started_at DESC, id DESC
 LIMIT :limit
"""

# Serves list_sessions, for an operator who looks into a file. It reads the whole table on purpose:
# indexes for every filter would slow every write down. What has timed out counts as timed out.
SELECT_SESSIONS_BY_FILTER = f"""
SELECT {_COLUMNS}
  FROM sessions
 WHERE (:child_id IS NULL OR child_id = :child_id)
   AND (:status IS NULL
        OR :status = CASE WHEN status <> 'active' OR ({_LIVE}) THEN status ELSE 'timeout' END)
 ORDER BY started_at DESC, id DESC
 LIMIT :limit
"""

# The three below serve get_session_stats, in one read transaction. idx_sessions_status has all of
# the first; the second reads what has come due since the last sweep.
COUNT_SESSIONS_BY_STATUS = """
SELECT status, count(*), sum(started_at >= :midnight)
  FROM sessions
 GROUP BY status
"""

COUNT_SESSIONS_TIMED_OUT = """
SELECT (SELECT count(*)
          FROM sessions INDEXED BY idx_sessions_activity
         WHERE status = 'active'
           AND swept_activity <= :idle_cutoff AND +last_activity <= :idle_cutoff)
       + (SELECT count(*)
            FROM sessions INDEXED BY idx_sessions_status
           WHERE status = 'active'
             AND started_at <= :lifetime_cutoff AND +last_activity > :idle_cutoff)
"""

SELECT_DATABASE_BYTES = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"

# -- Bookkeeping of migrations, and adoption of the predecessor's file -----------------------------

SELECT_TABLES = """
SELECT lower(name), type
  FROM sqlite_master
 WHERE lower(name) IN ('sessions', 'sessionstore_migrations') AND type <> 'trigger'
"""

# What a host project has put on our table: a migration that makes the table anew makes it again.
SELECT_HOST_OBJECTS = """
SELECT name, sql
  FROM sqlite_master
 WHERE type IN ('index', 'trigger') AND lower(tbl_name) = 'sessions' AND sql IS NOT NULL
   AND name NOT IN ('idx_sessions_child_id', 'idx_sessions_active_child', 'idx_sessions_status',
                    'idx_sessions_activity', 'idx_sessions_ended_at', 'sessions_inserted',
                    'sessions_activity_went_back', 'sessions_changed', 'sessions_deleted')
 ORDER BY rowid
"""

SELECT_OBJECT_NAMES = "SELECT name FROM sqlite_master"

CREATE_MIGRATIONS = """
CREATE TABLE IF NOT EXISTS sessionstore_migrations (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    applied_at DATETIME NOT NULL
)
"""

SELECT_MIGRATION_VERSIONS = "SELECT version FROM sessionstore_migrations"

INSERT_MIGRATION = """
INSERT INTO sessionstore_migrations (version, name, applied_at)
VALUES (:version, :name, :applied_at)
"""

# Serves open(): fails if SQLite opened the file for reading only, and deletes nothing.
DELETE_MIGRATION_NONE = "DELETE FROM sessionstore_migrations WHERE version = 0"

SELECT_SESSIONS_COLUMNS = "SELECT name FROM pragma_table_info('sessions')"

# The rows wait in a temporary table while sessions is made anew under its own name: a rename would
# drag the host project's views and references along, and the old indexes' names would be taken.
CREATE_PREDECESSOR_ROWS = "CREATE TEMP TABLE predecessor_sessions AS SELECT * FROM main.sessions"

DROP_SESSIONS = "DROP TABLE main.sessions"
SELECT_PREDECESSOR_ROWS = "SELECT * FROM temp.predecessor_sessions ORDER BY rowid"

DROP_PREDECESSOR_ROWS = "DROP TABLE temp.predecessor_sessions"
