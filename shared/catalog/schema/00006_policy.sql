-- The rules of the policy beside the ranges; all are off by default. demote_counts NULL is min_counts, min_residency is in
-- seconds, pinned_until NULL is a pin without an end. policy has one row; with mode 'observe' nothing moves. reason of
-- update_history is the rule by which the item moved, and its view_count is the count that it was decided on.
-- The columns are the last ones, so MySQL and MariaDB add those of the large tables without copying them. Each table's
-- columns come and go together. The server of quickstart --embedded takes no constraint of a column that the same statement adds.
-- 00005_count_entry.sql says why the statements are prepared.

-- +goose NO TRANSACTION
-- +goose Up
SET @tierflow_add = (SELECT IF(COUNT(*) > 0, 'DO 0',
  'ALTER TABLE `level` ADD COLUMN demote_counts BIGINT NULL DEFAULT NULL, ADD COLUMN min_residency BIGINT NOT NULL DEFAULT 0, ADD COLUMN state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ''active''')
  FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'level' AND column_name = 'state');

PREPARE tierflow_add FROM @tierflow_add;

EXECUTE tierflow_add;

DEALLOCATE PREPARE tierflow_add;

SET @tierflow_add = (SELECT IF(COUNT(*) > 0, 'DO 0',
  'ALTER TABLE `level` ADD CONSTRAINT level_state CHECK (state IN (''active'', ''readonly'', ''draining''))')
  FROM information_schema.table_constraints WHERE table_schema = DATABASE() AND table_name = 'level' AND constraint_name = 'level_state');

PREPARE tierflow_add FROM @tierflow_add;

EXECUTE tierflow_add;

DEALLOCATE PREPARE tierflow_add;

SET @tierflow_add = (SELECT IF(COUNT(*) > 0, 'DO 0',
  'ALTER TABLE contents ADD COLUMN pinned_until DATETIME(6) NULL DEFAULT NULL')
  FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'contents' AND column_name = 'pinned_until');

PREPARE tierflow_add FROM @tierflow_add;

EXECUTE tierflow_add;

DEALLOCATE PREPARE tierflow_add;

SET @tierflow_add = (SELECT IF(COUNT(*) > 0, 'DO 0',
  'ALTER TABLE update_history ADD COLUMN reason VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ''''')
  FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'update_history' AND column_name = 'reason');

PREPARE tierflow_add FROM @tierflow_add;

EXECUTE tierflow_add;

DEALLOCATE PREPARE tierflow_add;

CREATE TABLE IF NOT EXISTS policy (
  id   TINYINT     NOT NULL DEFAULT 1,
  mode VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'enforce',
  PRIMARY KEY (id),
  CONSTRAINT policy_one CHECK (id = 1),
  CONSTRAINT policy_mode CHECK (mode IN ('enforce', 'observe'))
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT IGNORE INTO policy (id) VALUES (1);
