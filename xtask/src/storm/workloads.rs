//! The programs: what they do, and how they tell that they are right.

/// One program, its work, and its own check.
pub(super) struct Workload {
    pub(super) name: &'static str,
    /// Starts the work; runs for as long as the VM does.
    pub(super) work: &'static str,
    /// Ends when it is under way.
    pub(super) ready: &'static str,
    /// Ends well if all is right; run in a child.
    pub(super) check: &'static str,
}

/// All of them, in the order in which they are run.
pub(super) const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "mariadb",
        // Every row is in both tables or in none.
        work: "install -d -o mysql /run/mysqld; mariadbd-safe --user=mysql --skip-log-error >/root/db.log 2>&1 & \
               until mariadb -e 'select 1' >/dev/null 2>&1; do sleep 0.5; done; \
               mariadb -e 'create database s; create table s.a (id int primary key, t text) engine=innodb; \
                 create table s.b like s.a; create table s.m (id int primary key) engine=aria transactional=1'; \
               n=0; while :; do n=$((n+1)); \
               echo \"begin; insert into s.a values ($n, repeat('x', $((n % 5000)))); \
                 insert into s.b values ($n, 'y'); commit; insert into s.m values ($n);\"; \
               done | mariadb",
        ready: "until [ $(mariadb -N -e 'select count(*) from s.b' 2>/dev/null || echo 0) -gt 50 ]; do sleep 1; done",
        check: "set -e; before=$(mariadb -N -e 'select count(*) from s.b'); \
                bad=$(mariadb -N -e 'check table s.a, s.b, s.m extended' | grep -vc 'status.OK' || true); \
                [ \"$bad\" = 0 ] || { mariadb -e 'check table s.a, s.b, s.m extended'; exit 3; }; \
                odd=$(mariadb -N -e 'select count(*) from s.a left join s.b using (id) where s.b.id is null'); \
                [ \"$odd\" = 0 ] || { echo \"$odd rows are in one table only\"; exit 4; }; \
                for i in 1 2 3 4 5 6 7 8 9 10; do \
                  after=$(mariadb -N -e 'select count(*) from s.b'); [ $after -gt $before ] && exit 0; sleep 1; done; \
                echo \"it stands still at $after\"; exit 5",
    },
    Workload {
        name: "gcc builds sqlite",
        work: "cd /root; n=0; while :; do gcc -O0 -w -c sqlite3.c -o sqlite3.o; code=$?; \
               echo \"$code $(sha256sum < sqlite3.o)\" >> builds; done",
        ready: "until [ -s /root/builds ]; do sleep 1; done",
        // The build that was under way at the fork, and those before it.
        check: "cd /root; before=$(wc -l < builds); until [ $(wc -l < builds) -gt $before ]; do sleep 1; done; \
                [ $(sort -u builds | wc -l) = 1 ] && grep -q '^0 ' builds || { sort builds | uniq -c; exit 3; }",
    },
    Workload {
        name: "node under autocannon",
        work: "cd /root; node server.js & sleep 2; \
               node node_modules/autocannon/autocannon.js -c 8 -d 100000 http://127.0.0.1:3000/ >/root/cannon.log 2>&1",
        ready: "until [ $(cat /root/replies 2>/dev/null || echo 0) -gt 200 ]; do sleep 1; done",
        check: "cd /root; node node_modules/autocannon/autocannon.js -j -c 4 -d 3 http://127.0.0.1:3000/ 2>/dev/null > r.json; \
                python3 -c \"import json; r=json.load(open('r.json')); print(r['2xx'], r['errors'], r['timeouts'], r['non2xx'], r['mismatches']); \
                assert r['2xx'] > 0 and not (r['errors'] or r['timeouts'] or r['non2xx'] or r['mismatches'])\"; \
                before=$(cat replies); sleep 3; [ $(cat replies) -gt $before ] || { echo 'the old client stands still'; exit 5; }",
    },
    Workload {
        name: "postgres under pgbench",
        work: "bin=$(echo /usr/lib/postgresql/*/bin); as=\"runuser -u postgres --\"; export PGDATA=/var/lib/postgresql/storm; \
               cd /; install -d -o postgres /run/postgresql; $as $bin/initdb --data-checksums >/root/db.log && $as $bin/pg_ctl -w -l $PGDATA/log start >>/root/db.log && \
               $as createdb bench && $as psql -q -c 'create extension amcheck' bench && $as $bin/pgbench -q -i -s 2 bench && \
               exec $as $bin/pgbench -c 4 -j 2 -T 1000000 bench >/root/bench.log 2>&1",
        ready: "until [ $(runuser -u postgres -- psql -At -c 'select count(*) from pgbench_history' bench 2>/dev/null || echo 0) \
                -gt 50 ]; do sleep 1; done",
        // Each transaction adds one amount to an account, a teller, a branch and the history; indexes agree with their
        // tables; no page is other than its checksum says.
        check: "set -e; cd /; bin=$(echo /usr/lib/postgresql/*/bin); as=\"runuser -u postgres --\"; \
                export PGDATA=/var/lib/postgresql/storm; query() { $as psql -At -v ON_ERROR_STOP=1 -c \"$1\" bench; }; \
                before=$(query 'select count(*) from pgbench_history'); \
                sums=$(query 'select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                  (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)'); \
                [ $(echo \"$sums\" | tr '|' '\\n' | sort -u | wc -l) = 1 ] || { echo \"sums differ: $sums\"; exit 3; }; \
                $as $bin/pg_amcheck --heapallindexed --database bench || exit 4; \
                for i in $(seq 30); do after=$(query 'select count(*) from pgbench_history'); \
                  [ $after -le $before ] || break; sleep 1; done; \
                [ $after -gt $before ] || { echo \"it stands still at $after\"; tail -5 /root/bench.log $PGDATA/log; exit 5; }; \
                ! grep -E 'PANIC|corrupt|invalid page|checksum' $PGDATA/log || exit 6; \
                $as $bin/pg_ctl -w -m fast stop >/dev/null; $as $bin/pg_checksums --check >/root/sums.log || { cat /root/sums.log; exit 7; }",
    },
    Workload {
        name: "git",
        // Each round replaces a file and the hash beside it, commits and pushes; each tenth is cloned anew and looked through.
        work: "cd /root; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; \
               git config --global gc.auto 0; git init -q --bare -b main origin && git clone -q origin work 2>/dev/null && cd work && mkdir data sums || exit 1; \
               round() { i=$((n % 50)); head -c $((n * 997 % 60000 + 1)) /dev/urandom > data/$i && \
                 sha256sum < data/$i > sums/$i && git add . && git commit -q -m $n && git push -q origin HEAD:main && \
                 { [ $((n % 10)) != 0 ] || { rm -rf ../fresh && git clone -q --no-local ../origin ../fresh && \
                   git -C ../fresh fsck --full --strict --no-progress && \
                   [ $(git -C ../fresh rev-list --count HEAD) = $n ] && git gc -q; }; }; }; \
               n=0; while [ ! -e ../stop ]; do n=$((n+1)); round >>../git.log 2>&1 || echo \"round $n\" >> ../bad; echo $n > ../r && mv ../r ../rounds; \
               done; touch ../stopped",
        ready: "until [ $(cat /root/rounds 2>/dev/null || echo 0) -gt 20 ]; do sleep 1; done",
        // The loop goes on for a while and ends when it is told to; all it has made is whole.
        check: "cd /root; before=$(cat rounds); until [ $(cat rounds) -gt $before ]; do sleep 1; done; \
                touch stop; until [ -e stopped ]; do sleep 1; done; \
                [ ! -e bad ] || { cat bad; tail -20 git.log; exit 3; }; \
                for r in origin work; do git -C $r fsck --full --strict --no-progress || exit 4; done; \
                rm -rf check && git clone -q --no-local origin check && cd check || exit 5; \
                [ $(git rev-list --count HEAD) = $(cat ../rounds) ] || { echo \"commits are missing: $(cat ../rounds)\"; exit 6; }; \
                for f in data/*; do [ \"$(sha256sum < $f)\" = \"$(cat sums/${f#data/})\" ] || { echo \"$f is another\"; exit 7; }; done",
    },
];

/// Answers with the SHA-256 of a buffer that it fills anew, and checks it against the first answer.
pub(super) const SERVER: &str = "\
const http = require('http'), crypto = require('crypto'), fs = require('fs');
let replies = 0, first;
setInterval(() => {
  fs.writeFileSync('/root/replies.new', String(replies));
  fs.renameSync('/root/replies.new', '/root/replies');
}, 500);
http.createServer((request, response) => {
  const sum = crypto.createHash('sha256').update(Buffer.alloc(65536, 7)).digest('hex');
  first ??= sum;
  if (sum !== first) { response.statusCode = 500; }
  replies += 1;
  response.end(JSON.stringify({ replies, sum }));
}).listen(3000, '127.0.0.1');
";
