-- SPDX-License-Identifier: MIT
-- The first schema.

CREATE TABLE sessions (
    id                VARCHAR(36) PRIMARY KEY,       -- UUID
    child_id          VARCHAR(36) NOT NULL,          -- the owner; up to 255 characters are accepted
    status            VARCHAR(20) NOT NULL DEFAULT 'active',   -- active | ended | timeout | error
    started_at        DATETIME NOT NULL,
    ended_at          DATETIME,
    last_activity     DATETIME NOT NULL,
    data              TEXT NOT NULL DEFAULT '{}',    -- JSON object
    metadata          TEXT NOT NULL DEFAULT '{}',    -- JSON object
    interaction_count INTEGER NOT NULL DEFAULT 0,

    CONSTRAINT sessions_id_is_text
        CHECK (typeof(id) = 'text' AND length(id) BETWEEN 1 AND 36),
    CONSTRAINT sessions_child_id_is_text
        CHECK (typeof(child_id) = 'text' AND length(child_id) > 0),
    CONSTRAINT sessions_status_is_known
        CHECK (status IN ('active', 'ended', 'timeout', 'error')),
    CONSTRAINT sessions_ended_at_is_null_exactly_while_active
        CHECK ((status = 'active') = (ended_at IS NULL)),
    -- datetime(.., '+0 days') turns a day that does not exist, such as 31 February, into another one.
    -- The fraction is left out: with it, the last second of the year 9999 is beyond SQLite's range.
    CONSTRAINT sessions_started_at_is_a_time
        CHECK (length(started_at) = 26 AND started_at NOT GLOB '0000*'
               AND substr(started_at, 1, 19) IS datetime(substr(started_at, 1, 19), '+0 days')
               AND substr(started_at, 20) GLOB '.[0-9][0-9][0-9][0-9][0-9][0-9]'),
    CONSTRAINT sessions_ended_at_is_a_time
        CHECK (ended_at IS NULL
               OR (length(ended_at) = 26 AND ended_at NOT GLOB '0000*'
                   AND substr(ended_at, 1, 19) IS datetime(substr(ended_at, 1, 19), '+0 days')
                   AND substr(ended_at, 20) GLOB '.[0-9][0-9][0-9][0-9][0-9][0-9]')),
    CONSTRAINT sessions_last_activity_is_a_time
        CHECK (length(last_activity) = 26 AND last_activity NOT GLOB '0000*'
               AND substr(last_activity, 1, 19) IS datetime(substr(last_activity, 1, 19), '+0 days')
               AND substr(last_activity, 20) GLOB '.[0-9][0-9][0-9][0-9][0-9][0-9]'),
    CONSTRAINT sessions_data_is_a_json_object
        CHECK (CASE WHEN json_valid(data) THEN json_type(data) = 'object' ELSE 0 END),
    CONSTRAINT sessions_metadata_is_a_json_object
        CHECK (CASE WHEN json_valid(metadata) THEN json_type(metadata) = 'object' ELSE 0 END),
    CONSTRAINT sessions_interaction_count_is_a_count
        CHECK (typeof(interaction_count) = 'integer' AND interaction_count >= 0)
);

-- Serves get_sessions_for_child: the sessions of one child, started last first.
CREATE INDEX idx_sessions_child_id ON sessions (child_id, started_at, id);

-- Serves get_active_sessions(child_id) and end_sessions: a child's few active sessions among its many.
CREATE INDEX idx_sessions_active_child ON sessions (child_id, started_at, id) WHERE status = 'active';

-- Serves get_active_sessions() in the order of starting, the sweep by max_lifetime, and the counts.
CREATE INDEX idx_sessions_status ON sessions (status, started_at, id);

-- Serves the sweep by idle time. Partial: sessions that have ended are not in it.
CREATE INDEX idx_sessions_activity ON sessions (last_activity) WHERE status = 'active';

-- Serves purge_ended_sessions: those that ended longest ago first.
CREATE INDEX idx_sessions_ended_at ON sessions (ended_at) WHERE ended_at IS NOT NULL;
