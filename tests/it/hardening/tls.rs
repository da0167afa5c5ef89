//! TLS to the database and Redis: what is verified, and the warning where nothing is.

use std::path::{Path, PathBuf};

use starling::cluster::redis::{ClusterKey, RedisCluster, ReplicaId, examine};
use starling::config::{Config, Settings};
use starling::model::{Clock, PresentEpoch};
use starling::store::{Store, StoreOptions};
use starling::tasks::Tasks;
use starling_loadtest::services::process::free_port;
use starling_loadtest::services::{Postgres, Redis};
use tempfile::TempDir;
use tokio::process::Command;

use crate::process::harness::Home;
use crate::support::{eventually, settings};

/// A directory with an authority, a certificate that it signed for this machine, and another
/// authority.
struct Certificates(TempDir);

impl Certificates {
    async fn make() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let made = Self(tempfile::tempdir().unwrap());
        // Postgres runs as another user.
        std::fs::set_permissions(made.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();

        for name in ["ca", "other"] {
            let (key, cert) =
                (made.file(&format!("{name}.key")), made.file(&format!("{name}.pem")));
            let fixed = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
            let subject = format!("/CN={name}");
            let own = ["-subj", &subject, "-addext", "keyUsage=critical,keyCertSign"];
            openssl(fixed, &[&own[..], &["-keyout", &key, "-out", &cert]].concat()).await;
        }

        std::fs::write(made.file("extensions"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")
            .unwrap();

        let (key, request) = (made.file("own.key"), made.file("own.csr"));
        let fixed = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        // Postgres takes the common name of a client's certificate as the name of the user.
        openssl(fixed, &["-subj", "/CN=postgres", "-keyout", &key, "-out", &request]).await;
        let signing =
            ["-in", &request, "-CA", &made.file("ca.pem"), "-CAkey", &made.file("ca.key")];
        let into = ["-extfile", &made.file("extensions"), "-out", &made.file("own.pem")];
        openssl("x509 -req -days 2 -CAcreateserial", &[&signing[..], &into[..]].concat()).await;

        std::fs::copy(&key, made.file("postgres.key")).unwrap();
        std::fs::set_permissions(made.file("postgres.key"), std::fs::Permissions::from_mode(0o600))
            .unwrap();
        // Only root can change the owner, and only root must.
        let _ = Command::new("chown").args(["postgres", &made.file("postgres.key")]).output().await;
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

async fn openssl(fixed: &str, further: &[&str]) {
    let done = Command::new("openssl").args(fixed.split(' ')).args(further).output().await.unwrap();
    assert!(done.status.success(), "{fixed}: {}", String::from_utf8_lossy(&done.stderr));
}

fn resolved(dir: &Path, change: impl FnOnce(&mut Settings)) -> Result<Config, String> {
    let mut settings = settings(dir, None);
    change(&mut settings);
    Config::resolve(settings, None)
}

async fn opens(options: &StoreOptions) -> bool {
    match Store::open(options).await {
        Ok(store) => {
            store.ping().await.unwrap();
            store.close().await;
            true
        }
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_verified_by_its_authority_and_sees_the_servers_own_certificate() {
    let certificates = Certificates::make().await;
    let hba = certificates.path("hba.conf");
    std::fs::write(
        &hba,
        "local all all trust\nhostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n",
    )
    .unwrap();

    let files =
        [("ssl_cert_file", "own.pem"), ("ssl_key_file", "postgres.key"), ("ssl_ca_file", "ca.pem")];
    let mut given: Vec<String> =
        files.map(|(key, name)| format!("{key}={}", certificates.file(name))).to_vec();
    given.extend([
        "ssl=on".to_owned(),
        "fsync=off".to_owned(),
        format!("hba_file={}", hba.display()),
    ]);
    let given: Vec<&str> = given.iter().map(String::as_str).collect();

    let postgres = Postgres::start(&given).await.unwrap();

    let options = |query: &str, ca: Option<&str>, client: bool| {
        let config = resolved(certificates.0.path(), |settings| {
            settings.database_url = Some(format!("{}{query}", postgres.url()));
            settings.database_ca_file = ca.map(|name| certificates.path(name));
            settings.database_cert_file = client.then(|| certificates.path("own.pem"));
            settings.database_key_file = client.then(|| certificates.path("own.key"));
        });
        config.unwrap().store
    };

    for query in
        ["", "?sslmode=prefer", "?sslmode=require", "?sslmode=verify-ca", "?sslmode=verify-full"]
    {
        assert!(opens(&options(query, Some("ca.pem"), true)).await, "{query}");
        assert!(
            !opens(&options(query, Some("other.pem"), true)).await,
            "{query}: signed by another authority"
        );
    }
    assert!(!opens(&options("", None, true)).await, "signed by no public authority");
    assert!(!opens(&options("", Some("ca.pem"), false)).await, "the server requires a certificate");

    let without = resolved(certificates.0.path(), |settings| {
        settings.database_url = Some(format!("{}?sslmode=disable", postgres.url()));
        settings.database_ca_file = Some(certificates.path("ca.pem"));
    });
    assert!(without.unwrap_err().contains("sslmode"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_is_verified_by_its_authority_and_sees_the_servers_own_certificate() {
    let certificates = Certificates::make().await;
    let port = free_port().unwrap();
    let (cert, key, ca) =
        (certificates.file("own.pem"), certificates.file("own.key"), certificates.file("ca.pem"));
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let listening = ["--tls-port", &port.to_string(), "--tls-auth-clients", "yes"];
    let redis = Redis::start(&[&listening[..], &files[..]].concat()).await.unwrap();

    let config = |url: String, ca: Option<&str>, client: bool| {
        resolved(certificates.0.path(), |settings| {
            settings.database_url = Some("postgres://a@localhost/b".to_owned());
            settings.redis_url = Some(url);
            settings.redis_ca_file = ca.map(|name| certificates.path(name));
            settings.redis_cert_file = client.then(|| certificates.path("own.pem"));
            settings.redis_key_file = client.then(|| certificates.path("own.key"));
        })
    };
    let address = |ca, client| {
        config(format!("rediss://127.0.0.1:{port}"), ca, client).unwrap().redis.unwrap().0
    };

    examine(&address(Some("ca.pem"), true)).await.unwrap();
    assert!(
        examine(&address(Some("other.pem"), true)).await.is_err(),
        "signed by another authority"
    );
    assert!(examine(&address(None, true)).await.is_err(), "signed by no public authority");
    assert!(
        examine(&address(Some("ca.pem"), false)).await.is_err(),
        "the server requires a certificate"
    );

    let (clock, tasks, prefix) = (Clock::system(), Tasks::default(), "test".to_owned());
    let location = (address(Some("ca.pem"), true), prefix);
    let joined = RedisCluster::join(
        location,
        ReplicaId(rand::random()),
        ClusterKey([7; 32]),
        PresentEpoch::default(),
        &clock,
        &tasks,
    );
    eventually("the bus is connected", async || joined.health.is_connected()).await;
    tasks.stop();

    let plain = config(redis.url(), Some("ca.pem"), true);
    assert!(plain.unwrap_err().contains("rediss://"));
    for url in [
        format!("rediss+sentinel://127.0.0.1:{port}/main"),
        format!("rediss+cluster://127.0.0.1:{port}"),
    ] {
        config(url, Some("ca.pem"), true).unwrap();
    }
}

#[tokio::test]
async fn an_unusable_certificate_file_ends_the_start_with_2_and_names_the_key() {
    let certificates = Certificates::make().await;
    let (pem, key, nonsense) = (
        certificates.file("own.pem"),
        certificates.file("own.key"),
        certificates.file("extensions"),
    );
    for of in ["database", "redis"] {
        let variable = |what: &str| format!("STARLING_{}_{what}_FILE", of.to_uppercase());
        let home = || {
            Home::new()
                .with("DATABASE_URL", "postgres://a@localhost/b")
                .with("REDIS_URL", "rediss://localhost")
        };

        let (ca, cert) = (format!("{of}_ca_file"), format!("{of}_cert_file"));
        for (home, words) in [
            (home().with(&variable("CA"), "nowhere.pem"), [ca.as_str(), "nowhere.pem"]),
            (home().with(&variable("CA"), &nonsense), [&ca, "no certificate"]),
            (home().with(&variable("CA"), &key), [&ca, "no certificate"]),
            (home().with(&variable("CERT"), &pem), [&cert, "set both"]),
            (home().with(&variable("KEY"), &key), [&cert, "set both"]),
            (
                home().with(&variable("CERT"), &pem).with(&variable("KEY"), &pem),
                [&format!("{of}_key_file"), "no private key"],
            ),
        ] {
            home.run(&[]).await.failed(2, &words);
        }

        let embedded = Home::new().with(&variable("CA"), &pem).run(&[]).await;
        embedded.failed(2, &[&ca]);
    }
}

#[tokio::test]
async fn an_unverified_connection_to_another_machine_is_warned_of_by_doctor_and_at_start() {
    let home = Home::new()
        .with("DATABASE_URL", "postgres://a@db.invalid/b")
        .with("REDIS_URL", "redis://redis.invalid")
        .with("STARLING_LOG", "warn");
    let doctor = home.run(&["doctor"]).await;
    assert!(doctor.out.contains("warn  Postgres is on another machine"), "{}", doctor.out);
    assert!(doctor.out.contains("warn  Redis is on another machine"), "{}", doctor.out);

    let served = home.run(&[]).await;
    for name in ["Postgres", "Redis"] {
        assert!(served.err.contains(&format!("{name} is on another machine")), "{}", served.err);
    }
}
