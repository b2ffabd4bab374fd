//! The answers of this machine's node.

use keyhole_proto::v1::control_server::Control;
use keyhole_proto::v1::*;
use tonic::{Request, Response, Status};

use super::THEN;

type Answer<T> = Result<Response<T>, Status>;

/// A node that always answers the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct FakeNode;

fn task(letter: char, service: &str, state: &str, reason: &str) -> NodeTask {
    NodeTask {
        id: letter.to_string().repeat(25),
        service: service.to_owned(),
        cgroup: "/sys/fs/cgroup/keyhole/x".to_owned(),
        state: state.to_owned(),
        reason: reason.to_owned(),
        since: THEN,
        files: vec!["db/password".to_owned(), "key".to_owned()],
        mount: "/run/secrets".to_owned(),
    }
}

#[tonic::async_trait]
impl Control for FakeNode {
    async fn run_task(&self, _: Request<RunTaskRequest>) -> Answer<NodeTask> {
        Err(Status::unimplemented(""))
    }

    async fn add_task(&self, request: Request<AddTaskRequest>) -> Answer<NodeTask> {
        let service = request.into_inner().service;
        match service.as_str() {
            "none" => Err(Status::not_found("service none not found")),
            "late" => Ok(Response::new(task('u', "late", "Pending", "no manager is in reach"))),
            name => Ok(Response::new(task('t', name, "Running", ""))),
        }
    }

    async fn list_tasks(&self, _: Request<ListTasksRequest>) -> Answer<NodeTaskList> {
        let tasks = vec![
            task('v', "web10", "Running", ""),
            task('t', "web2", "Rejected", "node alpha does not meet\nnode.labels.zone==eu"),
        ];
        Ok(Response::new(NodeTaskList { tasks }))
    }

    async fn remove_task(&self, request: Request<RemoveTaskRequest>) -> Answer<NodeTask> {
        match request.into_inner().id.as_str() {
            "none" => Err(Status::not_found("task none not found")),
            _ => Ok(Response::new(task('t', "web", "Complete", ""))),
        }
    }

    async fn node_status(&self, _: Request<NodeStatusRequest>) -> Answer<NodeStatusReply> {
        Ok(Response::new(NodeStatusReply {
            id: "n".repeat(25),
            cluster: "c".repeat(25),
            manager: String::new(),
            revision: Some(RevisionRef { incarnation: 1, index: 57 }),
            mount: "/run/secrets".to_owned(),
            tasks: 2,
            worker_starts: 1,
            certificate_expires_at: THEN + 3_600_000_000_000,
            trouble: "10.0.0.1:7070: Connection refused".to_owned(),
        }))
    }
}
