# A group of spot machines that train the jobs of one bucket. The group replaces a
# preempted machine, and the new one resumes every unfinished job.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 5.0"
    }
  }
}

variable "project" {
  type        = string
  description = "Project to create everything in."
}

variable "zone" {
  type        = string
  description = "Zone of the machines."
  default     = "us-central1-a"
}

variable "bucket" {
  type        = string
  description = "Name of an existing bucket; the jobs are below gs://BUCKET/jobs."
}

variable "package" {
  type        = string
  description = "URL of a wheel or a source archive of Outlast for pip, with [gcs]."
}

variable "machine_type" {
  type        = string
  description = "Machine type."
  default     = "n1-standard-4"
}

variable "image" {
  type        = string
  description = "Image with Python 3.11 or newer, and drivers where there are GPUs."
  default     = "debian-cloud/debian-12"
}

provider "google" {
  project = var.project
  zone    = var.zone
}

resource "google_service_account" "outlast" {
  account_id   = "outlast"
  display_name = "Outlast trainings"
}

# A root needs the permissions to read, write, list and delete files.
resource "google_storage_bucket_iam_member" "outlast" {
  bucket = var.bucket
  role   = "roles/storage.objectUser"
  member = "serviceAccount:${google_service_account.outlast.email}"
}

resource "google_compute_instance_template" "outlast" {
  name_prefix  = "outlast-"
  machine_type = var.machine_type

  disk {
    source_image = var.image
    boot         = true
    disk_size_gb = 50
  }

  network_interface {
    network = "default"
  }

  scheduling {
    provisioning_model          = "SPOT"
    preemptible                 = true
    automatic_restart           = false
    on_host_maintenance         = "TERMINATE"
    instance_termination_action = "STOP"
  }

  metadata = {
    outlast-root    = "gs://${var.bucket}/jobs"
    outlast-package = var.package
    outlast-unit    = file("${path.module}/../systemd/outlast.service")
    startup-script   = file("${path.module}/startup.sh")
  }

  service_account {
    email  = google_service_account.outlast.email
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_compute_instance_group_manager" "outlast" {
  name               = "outlast"
  base_instance_name = "outlast"
  target_size        = 1

  version {
    instance_template = google_compute_instance_template.outlast.self_link_unique
  }
}

output "root" {
  value       = "gs://${var.bucket}/jobs"
  description = "OUTLAST_ROOT for `outlast list`, `logs` and `stop` from anywhere."
}
