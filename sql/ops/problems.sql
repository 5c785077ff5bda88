-- What is wrong, and the command that mends it.
--
--   convsync psql -f sql/ops/problems.sql             or, in psql as the owner: \i sql/ops/problems.sql
--
-- What it shows: a row per problem of a Page (or of the installation, without page_id): what is wrong, why it matters, and the
-- command that mends it. `convsync status` shows the same; `convsync doctor` asks Graph and the settings too.
--
-- When to worry: a row is there. An empty answer is the good one.
--
-- What to do: the last column, from the top: what stands first is often the cause of what follows.

select p.page_id, p.problem, p.what, p.why, p.mend
from convsync_ops.problems p;
