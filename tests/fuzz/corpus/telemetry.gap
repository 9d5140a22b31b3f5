subject: telemetry.gap.acme.chat
Nats-Msg-Id: c3da1601aa7f53a9818f8fe31957ef62
content-type: application/json
ce-specversion: 1.0
ce-id: c3da1601aa7f53a9818f8fe31957ef62
ce-type: optiinfra.telemetry.gap.v1
ce-source: seed
ce-subject: telemetry.gap.acme.chat
ce-time: 2026-01-05T12:00:00+00:00
ce-tenant: acme

{"kind":"telemetry.gap","tenant":"acme","deployment":"chat","replica":null,"metrics":["ttft"],"engine":"vllm","engine_version":null,"detail":"gone","at":"2026-01-05T12:00:00Z"}