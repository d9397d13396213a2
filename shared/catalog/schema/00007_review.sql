-- review_at is when the decision on an item must be looked at again, without a new count; NULL is never. The api takes what is
-- due in this order. The table of changes of the levels gets another name: a rename loses no change that is under way.
-- The index is made while others write. A migration that was interrupted runs again, and after the loss of tierflow_schema all
-- of them do: then 00004_appraisal.sql has made an empty table again. 00005_count_entry.sql says why the statements are prepared.

-- +goose NO TRANSACTION
-- +goose Up
SET @tierflow_add = (SELECT IF(COUNT(*) > 0, 'DO 0',
  'ALTER TABLE contents ADD COLUMN review_at DATETIME(6) NULL DEFAULT NULL')
  FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'contents' AND column_name = 'review_at');

PREPARE tierflow_add FROM @tierflow_add;

EXECUTE tierflow_add;

DEALLOCATE PREPARE tierflow_add;

SET @tierflow_add = (SELECT IF(COUNT(*) > 0, 'DO 0',
  'ALTER TABLE contents ADD KEY contents_review (review_at, cid)')
  FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name = 'contents' AND index_name = 'contents_review');

PREPARE tierflow_add FROM @tierflow_add;

EXECUTE tierflow_add;

DEALLOCATE PREPARE tierflow_add;

SET @tierflow_rename = (SELECT IF(COUNT(*) > 0, 'DO 0', 'RENAME TABLE appraisal TO level_change')
  FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'level_change');

PREPARE tierflow_rename FROM @tierflow_rename;

EXECUTE tierflow_rename;

DEALLOCATE PREPARE tierflow_rename;

DROP TABLE IF EXISTS appraisal;
