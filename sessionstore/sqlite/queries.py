# SPDX-License-Identifier: MIT
"""Every SQL statement of the package, a constant each.

A name is verb + object + qualifier. A comment says which index serves the statement and why it has
its shape. Values are bound by name and never formatted in; the only text put together here is that
of the upper-case constants below. SQL never asks for the time: the caller hands the cutoffs down
(models.Expiry.cutoffs). Nothing is executed here.
"""

_COLUMNS = """id, child_id, status, started_at, ended_at, last_activity, data, metadata,
       interaction_count"""

# The rule "has not timed out", for SQL; models.Expiry.session holds it for Python. It filters and
# never finds: the plus signs keep SQLite from choosing an index, or a range of one, by it.
_LIVE = """status = 'active'
   AND +last_activity > :idle_cutoff
   AND +started_at > :lifetime_cutoff"""

# The active sessions that may have timed out, in two halves that share none: with OR, SQLite would
# read all active ones. Without figures from ANALYZE it would do so for the first half, too, hence
# INDEXED BY. Those of the second half have timed out; of the first, those that _LIVE leaves out.
_FROM_DUE = """FROM sessions INDEXED BY idx_sessions_activity
 WHERE status = 'active' AND swept_activity <= :idle_cutoff"""
_FROM_PAST_LIFETIME = """FROM sessions INDEXED BY idx_sessions_status
 WHERE status = 'active' AND started_at <= :lifetime_cutoff
   AND +swept_activity > :idle_cutoff"""

# Where an activity at a moment counts as it stands. INDEXED BY, the IN and the LIMIT
# together have SQLite search for each key, though ANALYZE may have seen a table that was small.
_MOMENTS = "(SELECT key, value FROM json_each(:moments) LIMIT -1)"
_AT_MOMENT = f"""sessions.id = key
   AND sessions.id IN (SELECT key FROM json_each(:moments))
   AND last_activity <= value AND length(swept_activity) <> 25
   AND {_LIVE}"""

# -- Transactions and settings ---------------------------------------------------------------------

BEGIN_READ = "BEGIN DEFERRED"
BEGIN_WRITE = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
SELECT_CHANGES = "SELECT changes()"  # of the last statement that writes; 0 where it was undone

SET_BUSY_TIMEOUT = "PRAGMA busy_timeout = 100"  # milliseconds; transactions.py tries again
SET_JOURNAL_SIZE_LIMIT = "PRAGMA journal_size_limit = 33554432"  # bytes, when the WAL restarts
SET_WAL_AUTOCHECKPOINT = "PRAGMA wal_autocheckpoint = 6000"  # pages; well below the limit
SET_PAGE_SIZE = "PRAGMA page_size = 2048"  # bytes, of a new file: an activity writes one page
SET_JOURNAL_WAL = "PRAGMA journal_mode = WAL"
SET_SECURE_DELETE = "PRAGMA secure_delete = ON"  # what is erased is overwritten with zeros
SET_TEMP_STORE_MEMORY = "PRAGMA temp_store = MEMORY"  # no temporary file ever holds data
SET_QUERY_ONLY = "PRAGMA query_only = ON"
SET_SYNCHRONOUS_FULL = "PRAGMA synchronous = FULL"
SET_SYNCHRONOUS_NORMAL = "PRAGMA synchronous = NORMAL"

CHECKPOINT_TRUNCATE = "PRAGMA wal_checkpoint(TRUNCATE)"

# Serves the sweep: another number than at the last sweep means that another connection, a foreign
# program's perhaps, has committed in between. SQLite's documentation of PRAGMA data_version.
SELECT_DATA_VERSION = "PRAGMA data_version"

# -- Writing ---------------------------------------------------------------------------------------

# Serves create_session. A plain INSERT: an id that is there already is an error, never an update.
INSERT_SESSION = """
INSERT INTO sessions
       (id, child_id, status, started_at, ended_at, last_activity, data, metadata,
        interaction_count, swept_activity)
VALUES (:id, :child_id, :status, :started_at, :ended_at, :last_activity, :data, :metadata,
        :interaction_count, :last_activity)
"""

# Serves update_activity, first part: many calls, {id: now}, in one statement, which hands the GIL
# over once. What is ahead of the clock, or marked (below), is left to the second part.
UPDATE_SESSIONS_ACTIVITY = f"""
UPDATE sessions INDEXED BY sqlite_autoindex_sessions_1
   SET last_activity     = value,
       interaction_count = interaction_count + 1
  FROM {_MOMENTS} WHERE {_AT_MOMENT}
"""

# Which those were, where there were fewer than moments: their last_activity is the moment now.
SELECT_SESSIONS_TOUCHED = f"""
SELECT sessions.id FROM sessions INDEXED BY sqlite_autoindex_sessions_1, {_MOMENTS}
 WHERE {_AT_MOMENT} AND last_activity = value
"""

# The same for one call: first with :now as :latest, then, as the second part, with a time after all
# others. By primary key. max(): last_activity never moves backwards.
UPDATE_SESSION_ACTIVITY = f"""
UPDATE sessions
   SET last_activity     = max(last_activity, :now),
       interaction_count = interaction_count + 1
 WHERE id = :id AND last_activity <= :latest
   AND (:latest <> :now OR length(swept_activity) <> 25)
   AND {_LIVE}
"""

# Serves activity in a session with a mark (below), which goes, or is made anew while the session is
# ahead of the clock. Where a lifetime starts ahead, too, it stays, and ends even a session in use.
UPDATE_SESSION_MARKED = """
UPDATE sessions
   SET swept_activity = iif(last_activity > :now, substr(:now, 1, 25), last_activity)
 WHERE id = :id AND length(swept_activity) = 25
   AND (:lifetime_cutoff = '' OR started_at <= :now)
"""

# Serves update_session, first half: what the keys are merged into. By primary key.
SELECT_LIVE_SESSION_BY_ID = f"""
SELECT {_COLUMNS}
  FROM sessions
 WHERE id = :id
   AND {_LIVE}
"""

# Serves update_session, second half, in the same transaction. By primary key.
UPDATE_SESSION_DATA = f"""
UPDATE sessions
   SET last_activity = max(last_activity, :now),
       data          = :data,
       metadata      = :metadata
 WHERE id = :id
   AND {_LIVE}
RETURNING {_COLUMNS}
"""

# Serves end_session. By primary key; one caller finds the session live, and no other.
UPDATE_SESSION_ENDED = f"""
UPDATE sessions
   SET status   = :status,
       ended_at = :now,
       metadata = json_set(metadata, '$.end_reason', :reason)
 WHERE id = :id
   AND {_LIVE}
RETURNING {_COLUMNS}
"""

# Serves end_sessions. idx_sessions_child_id finds the active sessions of one child; without figures
# from ANALYZE, SQLite might read those of all children.
UPDATE_SESSIONS_ENDED_BY_CHILD = f"""
UPDATE sessions INDEXED BY idx_sessions_child_id
   SET status   = :status,
       ended_at = :now,
       metadata = json_set(metadata, '$.end_reason', :reason)
 WHERE child_id = :child_id
   AND id IS NOT :except_id
   AND {_LIVE}
RETURNING {_COLUMNS}
"""

# Serves the sweep, first part: what has timed out, and what may have, for all that the sweep before
# knew. No data is read: most of these may be alive.
SELECT_SESSIONS_DUE = f"""
SELECT id, started_at, last_activity, swept_activity
  {_FROM_DUE}
UNION ALL
SELECT id, started_at, last_activity, swept_activity
  {_FROM_PAST_LIFETIME}
 LIMIT :limit
"""

# Serves the sweep, second part. By primary key. SQLite would know ended_at in milliseconds only.
UPDATE_SESSION_TIMED_OUT = f"""
UPDATE sessions
   SET status   = 'timeout',
       ended_at = :ended_at,
       metadata = json_set(metadata, '$.end_reason', 'timeout')
 WHERE id = :id
RETURNING {_COLUMNS}
"""

# Serves the sweep, third part, in the same transaction: those that are alive come due again when
# they may have timed out. By primary key, one by one: json_each would cut an id that holds a NUL.
UPDATE_SESSION_SWEPT = "UPDATE sessions SET swept_activity = last_activity WHERE id = :id"

# Serves the background sweep. idx_sessions_activity finds what is ahead of the clock, that is from
# before it was set back. The mark is the time without its last digit, and comes due like any other.
UPDATE_SESSIONS_AHEAD = """
UPDATE sessions
   SET swept_activity = substr(:now, 1, 25)
 WHERE id IN (SELECT id
                FROM sessions INDEXED BY idx_sessions_activity
               WHERE status = 'active' AND swept_activity > :now LIMIT :limit)
"""

# Serves delete_session. By primary key, whatever the status.
DELETE_SESSION = "DELETE FROM sessions WHERE id = :id RETURNING id"

# Serves purge_ended_sessions, in short transactions. idx_sessions_ended_at finds the oldest.
DELETE_SESSIONS_ENDED_BEFORE = """
DELETE FROM sessions
 WHERE id IN (SELECT id
                FROM sessions WHERE ended_at <= :cutoff
               ORDER BY ended_at LIMIT :limit)
RETURNING id
"""

# -- Reading ---------------------------------------------------------------------------------------

# Serves get_session. Many misses of the cache in one statement, each found by primary key: one
# statement hands the GIL over once, where one for each id hands it over for each.
SELECT_SESSIONS_BY_IDS = f"""
SELECT {_COLUMNS}
  FROM sessions
 WHERE id IN (SELECT value FROM json_each(:ids))
"""

# Serves get_active_sessions and iter_active_sessions. Keyset: idx_sessions_status starts at the
# last session of the page before, or at ('', ''), which sorts before all.
SELECT_ACTIVE_SESSIONS = f"""
SELECT {_COLUMNS}
  FROM sessions
 WHERE {_LIVE}
   AND (started_at, id) > (:after_started_at, :after_id)
 ORDER BY started_at, id
 LIMIT :limit
"""

# The same for one child. idx_sessions_child_id, whatever ANALYZE has seen.
SELECT_ACTIVE_SESSIONS_BY_CHILD = f"""
SELECT {_COLUMNS}
  FROM sessions INDEXED BY idx_sessions_child_id
 WHERE child_id = :child_id
   AND {_LIVE}
   AND (started_at, id) > (:after_started_at, :after_id)
 ORDER BY started_at, id
 LIMIT :limit
"""

_OF_CHILD = f"""SELECT {_COLUMNS} FROM sessions WHERE child_id = :child_id AND status ="""

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

# The three below serve get_session_stats, in one read transaction. The first reads counters that
# triggers keep, a few for each day; the second what has come due since the last sweep.
COUNT_SESSIONS_BY_STATUS = """
SELECT status, sum(sessions), sum(iif(day >= :today, sessions, 0))
  FROM sessionstore_counts GROUP BY status
"""

COUNT_SESSIONS_TIMED_OUT = f"""
SELECT (SELECT count(*) {_FROM_DUE}
           AND (last_activity <= :idle_cutoff OR started_at <= :lifetime_cutoff))
       + (SELECT count(*) {_FROM_PAST_LIFETIME})
"""

SELECT_DATABASE_BYTES = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"

# -- Bookkeeping of migrations, and adoption of the predecessor's file -----------------------------

SELECT_TABLES = """
SELECT lower(name), type FROM sqlite_master
 WHERE lower(name) IN ('sessions', 'sessionstore_migrations') AND type <> 'trigger'
"""

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

SELECT_SESSIONS_COLUMNS = "SELECT name FROM pragma_table_info('sessions')"

# The rows wait in a temporary table while sessions is made anew under its own name: a rename would
# drag the host project's views and references along, and the old indexes' names would be taken.
CREATE_PREDECESSOR_ROWS = "CREATE TEMP TABLE predecessor_sessions AS SELECT * FROM main.sessions"

DROP_SESSIONS = "DROP TABLE main.sessions"
SELECT_PREDECESSOR_ROWS = "SELECT * FROM temp.predecessor_sessions ORDER BY rowid"

DROP_PREDECESSOR_ROWS = "DROP TABLE temp.predecessor_sessions"
