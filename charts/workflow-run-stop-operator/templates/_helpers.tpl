{{/* Owns the names, the labels, the arithmetic and the rules that several templates need. */}}

{{- define "operator.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "operator.fullname" -}}
{{- $name := include "operator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* All pods of the release: the operator's, and the one of `helm test`. */}}
{{- define "operator.release" -}}
app.kubernetes.io/name: {{ include "operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The operator's pods. */}}
{{- define "operator.selector" -}}
{{ include "operator.release" . }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "operator.ownLabels" -}}
{{ include "operator.release" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The labels of every object. Where it has more, the maps are merged: a key that is printed twice is not YAML. */}}
{{- define "operator.labels" -}}
{{ merge (dict) (default dict .Values.commonLabels) (include "operator.ownLabels" . | fromYaml) | toYaml }}
{{- end }}

{{- define "operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "operator.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{- define "operator.lease" -}}
{{ default (include "operator.fullname" .) .Values.leaseName }}
{{- end }}

{{- define "operator.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "operator.port" -}}
{{ splitList ":" .Values.httpAddr | last }}
{{- end }}

{{/* The seconds of a duration such as 40s or 1m30s; the schema lets nothing else pass. */}}
{{- define "operator.seconds" -}}
{{- $minutes := regexFind "[0-9]+m" . | trimSuffix "m" | default "0" | int -}}
{{- $seconds := regexFind "[0-9]+s" . | trimSuffix "s" | default "0" | int -}}
{{ add (mul 60 $minutes) $seconds }}
{{- end }}

{{/* What the schema cannot say, for it is about several values at once. */}}
{{- define "operator.checks" -}}
{{- with .Values -}}
{{- range $name := list "requestTimeout" "settleTime" "drainTimeout" }}
{{- if gt (include "operator.seconds" (get $.Values $name) | int) 3600 }}
{{- fail (printf "%s (%s) is longer than an hour" $name (get $.Values $name)) }}
{{- end }}
{{- end }}
{{- if le (include "operator.seconds" .drainTimeout | int) (include "operator.seconds" .requestTimeout | int) }}
{{- fail (printf "drainTimeout (%s) has to be longer than requestTimeout (%s): requests in flight are answered and recorded within it" .drainTimeout .requestTimeout) }}
{{- end }}
{{- if and (not .leaderElect) .leaseName }}
{{- fail "leaseName is set, but leaderElect is false: there is no Lease" }}
{{- end }}
{{- $own := include "operator.ownLabels" $ | fromYaml }}
{{- range $name := list "commonLabels" "deploymentLabels" "podLabels" }}
{{- range $label := keys (get $.Values $name | default dict) }}
{{- if or (hasKey $own $label) (eq $label "app.kubernetes.io/component") }}
{{- fail (printf "%s: the chart itself sets the label %s" $name $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .caBundle.configMap .caBundle.secret }}
{{- fail "caBundle.configMap and caBundle.secret are both set: choose one" }}
{{- end }}
{{- if and .metrics.serviceMonitor.enabled .metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor and metrics.podMonitor are both enabled: each pod would be scraped twice" }}
{{- end }}
{{- if and .metrics.serviceMonitor.enabled (not .metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled needs metrics.service.enabled: a ServiceMonitor scrapes a Service" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the operator does with the resources that it watches, for a ClusterRole or a Role of each namespace. */}}
{{- define "operator.rules" -}}
- apiGroups: [workflow.amperity.com]
  resources: [workflowrunstops]
  # Deleted is what ttlSecondsAfterFinished says.
  verbs: [get, list, watch, delete]
- apiGroups: [workflow.amperity.com]
  resources: [workflowrunstops/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets]
  {{- with .Values.secrets.names }}
  resourceNames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* Where the pods may run, and how they get their image. */}}
{{- define "operator.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}
