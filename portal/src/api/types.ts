/** The API's shapes by their names; `schema.ts` is generated from its OpenAPI document. */
import type { components } from "./schema";

type Schemas = components["schemas"];

export type Problem = Omit<Schemas["Problem"], "hint"> & { hint?: string | null };
export type Me = Schemas["MeView"];
export type Providers = Schemas["ProvidersView"];
export type Ticket = Schemas["TicketView"];
export type Accepted = Schemas["AcceptedView"];
export type Agent = Schemas["AgentView"];
export type DeploymentRow = Schemas["DeploymentView"];
export type Recommendation = Schemas["Recommendation"];
export type RecommendationRow = Schemas["RecommendationView"];
export type RecommendationDetail = Schemas["RecommendationDetail"];
export type Snooze = Schemas["Snooze"];
export type CardView = Schemas["CardView"];
export type ChangeRow = Schemas["ChangeView"];
export type ChangeDetail = Omit<Schemas["ChangeDetail"], "stages"> & { stages: Stage[] };
export type ChangeState = Schemas["ChangeState"];
export type EventRow = Schemas["EventView"];
export type Causes = Schemas["CausesView"];
export type RelatedRow = Schemas["RelatedView"];
export type ReplayRow = Schemas["ReplayView"];
export type StepRow = Schemas["StepView"];
export type WhatIf = Schemas["WhatIfView"];
export type Difference = Schemas["Difference"];
export type AuditRow = Schemas["AuditView"];
export type Stage = Schemas["StageView"] & { looks: Look[] };
export type Look = Schemas["LookView"];
export type GateAnswer = Schemas["GateAnswer"];
export type GateMetric = Schemas["GateMetric"];
export type Evidence = Schemas["Evidence"];
export type Vote = Schemas["Vote"];
export type Switch = Schemas["SwitchView"];
export type Risk = Schemas["Risk"];
export type Role = Schemas["Role"];
export type Unit = Schemas["Unit"];
export type Reading = Schemas["Known"] | Schemas["Unknown"];
export type TtftMap = Schemas["HeatView"];
export type Forecasts = Schemas["ForecastView"];
export type Lanes = Schemas["LanesView"];
export type Lane = Schemas["LaneView"];
export type Mark = Schemas["MarkView"];
export type Span = Schemas["SpanView"];
export type Verification = Schemas["VerificationView"];
export type Interval = Schemas["Interval"];

export type User = Schemas["UserView"];
export type Permission = Schemas["Permission"];
export type Key = Schemas["KeyView"];
export type KeyMade = Schemas["KeyMade"];
export type SignedIn = Schemas["SignedInView"];
export type SessionsEnded = Schemas["EndedView"];
export type SignInLink = Schemas["LinkView"];
export type PolicyRow = Schemas["PolicyView"];
export type PolicyDetail = Schemas["PolicyDetail"];
export type PolicyCheck = Schemas["CheckView"];
export type Finding = Schemas["FindingView"];
export type Notifications = Schemas["NotificationsView"];
export type NotificationRule = Schemas["NotificationRule"];
export type NotificationTarget = Schemas["TargetView"];
export type NotificationSent = Schemas["SentView"];
export type DeadLetter = Schemas["LetterView"];

export interface Page<T> {
  items: T[];
  next?: string | null;
}
