//! Users and groups from `/etc/passwd` and `/etc/group`, read directly: a static program has no name service.

use std::fs;

use crate::core::failure::{AgentError, AgentResult};

/// The user that a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::platform::linux) struct User {
    pub(in crate::platform::linux) name: String,
    pub(in crate::platform::linux) uid: u32,
    pub(in crate::platform::linux) gid: u32,
    pub(in crate::platform::linux) groups: Vec<u32>,
    pub(in crate::platform::linux) home: String,
    pub(in crate::platform::linux) shell: String,
}

/// Resolves `name`, `uid`, `name:group`, `uid:gid`; empty: root.
pub(in crate::platform::linux) fn resolve(specification: &str) -> AgentResult<User> {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let group = fs::read("/etc/group").unwrap_or_default();
    resolve_in(specification, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group))
}

fn resolve_in(specification: &str, passwd: &str, group: &str) -> AgentResult<User> {
    let (user, wanted_group) = match specification.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (specification, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 7 && (fields[0] == user || (number.is_some() && fields[2].parse().ok() == number))
    });
    let mut found = match (entry, number) {
        (Some(fields), _) => {
            let bad = || AgentError::invalid(format!("the entry of user `{user}` in /etc/passwd is damaged"));
            User {
                name: fields[0].to_owned(),
                uid: fields[2].parse().map_err(|_| bad())?,
                gid: fields[3].parse().map_err(|_| bad())?,
                groups: Vec::new(),
                home: if fields[5].is_empty() { "/".to_owned() } else { fields[5].to_owned() },
                shell: fields[6].to_owned(),
            }
        }
        (None, Some(0)) => User {
            name: "root".to_owned(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/root".to_owned(),
            shell: String::new(),
        },
        (None, Some(uid)) => User {
            name: uid.to_string(),
            uid,
            gid: 0,
            groups: Vec::new(),
            home: "/".to_owned(),
            shell: String::new(),
        },
        (None, None) => {
            return Err(AgentError::not_found(format!("no user is called `{user}` in this guest")));
        }
    };
    let groups: Vec<(&str, u32, &str)> = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            Some((*fields.first()?, fields.get(2)?.parse().ok()?, *fields.get(3)?))
        })
        .collect();
    if let Some(wanted) = wanted_group {
        let by_name = groups.iter().find(|(name, ..)| *name == wanted).map(|(_, gid, _)| *gid);
        found.gid = by_name
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| AgentError::not_found(format!("no group is called `{wanted}` in this guest")))?;
    }
    found.groups = groups
        .iter()
        .filter(|(_, _, members)| members.split(',').any(|member| member.trim() == found.name))
        .map(|(_, gid, _)| *gid)
        .take(1024)
        .collect();
    if !found.groups.contains(&found.gid) {
        found.groups.push(found.gid);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:100::/home/ann:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nvideo:x:44:bob,ann\n";

    #[test]
    fn names_numbers_and_groups_are_found() {
        let ann = resolve_in("ann", PASSWD, GROUP).unwrap();
        assert_eq!(
            (ann.uid, ann.gid, &*ann.home, ann.groups.clone()),
            (1000, 100, "/home/ann", vec![44, 100])
        );
        assert_eq!(resolve_in("1000", PASSWD, GROUP).unwrap(), ann);
        assert_eq!(resolve_in("ann:video", PASSWD, GROUP).unwrap().gid, 44);
        assert_eq!(resolve_in("4242:7", PASSWD, GROUP).unwrap().gid, 7);
        assert_eq!(resolve_in("", "", "").unwrap().home, "/root");
    }

    #[test]
    fn unknown_names_are_told() {
        for text in ["nobody-here", "ann:nogroup"] {
            let error = resolve_in(text, PASSWD, GROUP).unwrap_err();
            assert_eq!(error.kind, microvm_protocol::messages::FailureKind::NotFound);
        }
    }
}
