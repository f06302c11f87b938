-- SPDX-License-Identifier: MIT
-- The whole schema of today. A fresh file gets this; an older one gets what it lacks from migrations/.
-- Times are text, UTC, always 'YYYY-MM-DD HH:MM:SS.ffffff', so that they sort as text.

CREATE TABLE sessions (
    id                VARCHAR(36) PRIMARY KEY NOT NULL,        -- a UUID
    child_id          VARCHAR(36) NOT NULL,          -- the owner; up to 255 characters are accepted
    status            VARCHAR(20) NOT NULL DEFAULT 'active',   -- active | ended | timeout | error
    started_at        DATETIME NOT NULL,
    ended_at          DATETIME,
    last_activity     DATETIME NOT NULL,
    data              TEXT NOT NULL DEFAULT '{}',    -- a JSON object
    metadata          TEXT NOT NULL DEFAULT '{}',    -- a JSON object; holds end_reason
    interaction_count INTEGER NOT NULL DEFAULT 0,
    swept_activity    DATETIME NOT NULL DEFAULT '',  -- last_activity when a sweep last looked at it

    CONSTRAINT sessions_id_is_text
        CHECK (typeof(id) = 'text'),
    CONSTRAINT sessions_status_is_known
        CHECK (status IN ('active', 'ended', 'timeout', 'error')),
    CONSTRAINT sessions_ended_at_is_null_exactly_while_active
        CHECK ((status = 'active') = (ended_at IS NULL)),
    CONSTRAINT sessions_started_at_is_a_time
        CHECK (started_at LIKE '____-__-__ __:__:__.______'),
    CONSTRAINT sessions_ended_at_is_a_time
        CHECK (ended_at LIKE '____-__-__ __:__:__.______'),
    CONSTRAINT sessions_last_activity_is_a_time
        CHECK (last_activity LIKE '____-__-__ __:__:__.______'),
    CONSTRAINT sessions_data_is_json
        CHECK (json_valid(data)),
    CONSTRAINT sessions_metadata_is_json
        CHECK (json_valid(metadata))
);

-- Serves get_active_sessions(child_id), end_sessions and, a status at a time, get_sessions_for_child.
CREATE INDEX idx_sessions_child_id ON sessions (child_id, status, started_at, id);

-- Serves get_active_sessions() in the order of starting, the sweep by max_lifetime, and the counts.
CREATE INDEX idx_sessions_status ON sessions (status, started_at, id);

-- Serves the sweep by idle time. Not on last_activity: each touch would write the index, too, which
-- doubles its cost. swept_activity stays behind, and a sweep that finds the session alive moves it on.
CREATE INDEX idx_sessions_activity ON sessions (swept_activity) WHERE status = 'active';

-- Serves purge_ended_sessions: those that ended longest ago first.
CREATE INDEX idx_sessions_ended_at ON sessions (ended_at) WHERE ended_at IS NOT NULL;
