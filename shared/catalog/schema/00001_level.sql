-- The policy: a range of counts for each level, and the tier where the level's items lie. max_counts NULL means "no upper
-- end".

-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS `level` (
  content_level VARCHAR(64)   NOT NULL,
  min_counts    BIGINT        NOT NULL,
  max_counts    BIGINT        NULL DEFAULT NULL,
  path          VARCHAR(4095) NOT NULL,
  tier_id       VARCHAR(64)   NOT NULL DEFAULT '',
  PRIMARY KEY (content_level),
  CONSTRAINT level_min_counts CHECK (min_counts >= 0),
  CONSTRAINT level_max_counts CHECK (max_counts IS NULL OR max_counts >= min_counts)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT IGNORE INTO `level` (content_level, min_counts, max_counts, path) VALUES
  ('bronze', 0, 999, '/srv/tierflow/bronze'),
  ('silver', 1000, 1999, '/srv/tierflow/silver'),
  ('gold', 2000, NULL, '/srv/tierflow/gold');
