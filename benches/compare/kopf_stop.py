"""Owns the operator that a user would write with Kopf: a handler that stops the run of each new WorkflowRunStop.

Never stores that it is about to send: after a crash between the request and the status, Kopf sends the request again.
"""

import base64
import datetime
import os

import aiohttp
import kopf
from kubernetes_asyncio import client, config

BASE_URL = os.environ["AMPERITY_BASE_URL"]


@kopf.on.startup()
async def connect(memo, **_):
    await config.load_kube_config()
    memo.kubernetes = client.ApiClient()
    memo.http = aiohttp.ClientSession(raise_for_status=True)


@kopf.on.cleanup()
async def disconnect(memo, **_):
    await memo.http.close()
    await memo.kubernetes.close()


@kopf.on.create("workflow.amperity.com", "v1alpha1", "workflowrunstops")
async def stop(body, spec, meta, namespace, patch, memo, **_):
    name = spec["credentialsSecretRef"]["name"]
    secret = await client.CoreV1Api(memo.kubernetes).read_namespaced_secret(name, namespace)
    token = base64.b64decode(secret.data["token"]).decode()
    headers = {
        "authorization": f"Bearer {token}",
        "amperity-tenant": spec["tenant"],
        "api-version": "2024-04-01",
    }
    async with memo.http.post(f"{BASE_URL}/workflow/runs/{spec['runId']}/stop", headers=headers) as response:
        run = await response.json()
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    patch.status["state"] = run["state"]
    patch.status["result"] = "Stopped"
    patch.status["completionTime"] = now
    patch.status["observedGeneration"] = meta["generation"]
    patch.status["stopRequest"] = {"attempts": 1, "acceptedTime": now, "httpStatus": response.status}
    patch.status["conditions"] = [
        {
            "type": "Ready",
            "status": "True",
            "reason": "StopAccepted",
            "message": "The run was stopped.",
            "lastTransitionTime": now,
            "observedGeneration": meta["generation"],
        }
    ]
    kopf.event(body, type="Normal", reason="RunStopped", message="The run was stopped.")
