# ClaudeFS. Bare `make` prints the targets; every target fails if any of its steps does.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

GO ?= go
# What `make fuzz` spends in total, spread over all targets, in seconds.
FUZZTIME ?= 60
# What `make bench` runs, as a regular expression, and where.
BENCH ?= .
PKG   ?= ./...
# DEMO=short makes the demo use a smaller tree and file.
DEMO  ?=

# The packages by how they are tested: under the race detector, those that share
# memory between goroutines; one after the other, those that start whole clusters.
RACE_DIRS  := iopath|wire|client|raftmeta|store|nvme|internal/invariants
WHOLE_DIRS := cluster|test
# Of those the ones that are pure: there is no goroutine in them to race.
PURE_DIRS  := raftmeta/fsm|raftmeta/lease
ALL_PKGS    = $(eval ALL_PKGS := $(shell $(GO) list ./...))$(ALL_PKGS)
packages    = $(shell printf '%s\n' $(ALL_PKGS) | grep $(1) '^[^/]+/[^/]+/[^/]+/($(2))(/|$$)')
PURE_PKGS   = $(call packages,-E,$(PURE_DIRS))
RACE_PKGS   = $(filter-out $(PURE_PKGS),$(call packages,-E,$(RACE_DIRS)))
WHOLE_PKGS  = $(call packages,-E,$(WHOLE_DIRS))
# The reference I/O engine links with this only.
REFERENCE  := -tags iouringgo -ldflags=-checklinkname=0
# How many crashes of a device's log `make soak` survives.
SEEDS      ?= 10000
# What does the same again and again: all of it with the invariants, a part under the race detector.
DAMAGE_TESTS := ^Test(Crashes|CheckOfRandomDamage|HeaderBitFlips|RandomDamage)$$
# How long each run of the linearizability tests takes; there are RUNS for each kind of fault.
SOAK       ?= 30s
RUNS       ?= 10
# How long it keeps each kind of fault up, in a cluster whose every acknowledged byte is checked.
CHAOS      ?= 2m
CHAOS_TESTS := ^Test(Model|ChaosNodes|ChaosMounts|DeviceLife|Restriping|TwoDevicesLost|BitFlips|NoSpace|Transport|SleepingMount)$$
# How many operations it does on one file, through one mount and through two.
FSX_OPS    ?= 100000
# How long two mounts work in the same directories.
STRESS     ?= 60m
# How many operations of the namespace it holds against the model.
MODEL_OPS  ?= 1000000
PLAIN_PKGS  = $(call packages,-vE,$(RACE_DIRS)|$(WHOLE_DIRS)) $(PURE_PKGS)

# Tests do not vet, as `make lint` does. -count=1 because whole-cluster tests exec
# binaries that Go's cache of test results does not see.
TEST := $(GO) test -vet=off -count=1

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  DEMO=short    a shorter demo                FUZZTIME=600  seconds of fuzzing in all"
	@echo "  BENCH=regexp  which benchmarks              PKG=./ec      benchmarks of which packages"

.PHONY: deps
deps: ## install what the build, the tests and the demo need from Debian (nothing when all is there)
	@hack/deps.sh

.PHONY: build
build: ## build all commands into bin/
	CGO_ENABLED=0 $(GO) build -o bin/ ./cmd/...

.PHONY: generate
generate: deps ## regenerate the committed generated code
	hack/generate.sh .

.PHONY: test
test: deps build ## everything: tidy rules, unit and whole-cluster tests, race detector, 60 s of fuzzing
	@echo "== tests"
	$(if $(PLAIN_PKGS),CGO_ENABLED=0 $(TEST) -timeout 4m $(PLAIN_PKGS))
	@$(MAKE) race
	@echo "== tests that count allocations, which the race detector would add to"
	$(if $(RACE_PKGS),CGO_ENABLED=0 $(TEST) -timeout 2m -run '(?i)alloc' $(RACE_PKGS))
	@echo "== the log's crashes and damage, of which the race detector sees a part"
	CGO_ENABLED=0 $(TEST) -tags invariants -timeout 4m -run '$(DAMAGE_TESTS)' ./nvme
	@echo "== the reference I/O engine, under the same suite"
	CGO_ENABLED=0 $(TEST) -timeout 2m $(REFERENCE) -run 'IouringGo' ./iopath
	CGO_ENABLED=0 $(GO) build $(REFERENCE) -o /dev/null ./cmd/cfs-perf
	@echo "== NVMe devices, in a virtual machine"
	@hack/vm-test.sh short
	@echo "== whole clusters"
	$(if $(WHOLE_PKGS),CGO_ENABLED=0 $(TEST) -timeout 12m -p 1 $(WHOLE_PKGS))
	@$(MAKE) fuzz

.PHONY: race
race: deps ## test the concurrent packages under the race detector
	@echo "== tests under the race detector"
	$(if $(RACE_PKGS),CGO_ENABLED=1 $(TEST) -race -timeout 6m $(RACE_PKGS))

.PHONY: soak
soak: deps build ## long runs: SEEDS crashes of a device's log, MODEL_OPS operations against the model, RUNS of SOAK for each fault of linearizability, CHAOS for each fault of a cluster, ten minutes of fuzzing
	@echo "== crashes"
	cd nvme && CGO_ENABLED=0 $(TEST) -timeout 60m -run '^TestCrashes$$' -args -crash.seeds $(SEEDS)
	@echo "== the namespace against its model"
	cd raftmeta/fsm && CGO_ENABLED=0 $(TEST) -timeout 120m -run '^TestModel$$' -args -model.ops $(MODEL_OPS)
	@echo "== linearizability"
	cd test/linear && CGO_ENABLED=0 $(TEST) -timeout 240m -args -linear.time $(SOAK) -linear.runs $(RUNS)
	@echo "== clusters under faults"
	cd test && CGO_ENABLED=0 $(TEST) -timeout 120m -run '$(CHAOS_TESTS)' -args -chaos.time $(CHAOS)
	@echo "== one file at random, through one mount and through two"
	cd test && CGO_ENABLED=0 $(TEST) -timeout 240m -run '^TestFSX$$' -args -fsx.ops $(FSX_OPS) -chaos.time 100m
	@echo "== two mounts in one place"
	cd test && CGO_ENABLED=0 $(TEST) -timeout 120m -run '^Test(MountsAreCoherent|TwoMountsInOnePlace)$$' -args -coherence.all -stress.time $(STRESS)
	@$(MAKE) fuzz FUZZTIME=600

.PHONY: pjdfstest
pjdfstest: deps build ## run pjdfstest, whose source is in the directory PJDFSTEST, inside a mount (as root)
	@hack/pjdfstest.sh "$(or $(PJDFSTEST),$(error pjdfstest: say where the suite is: PJDFSTEST=dir))"

.PHONY: xfstests
xfstests: deps build ## run xfstests, built in the directory XFSTESTS, over two mounts (as root); TESTS="generic/001 -g quick" says which
	@hack/xfstests.sh "$(or $(XFSTESTS),$(error xfstests: say where the suite is: XFSTESTS=dir))" $(TESTS)

.PHONY: programs
programs: deps build ## let git, go, sqlite, tar, rsync, dpkg, dbench and PostgreSQL work inside a mount (as root; installs them)
	@hack/programs-deps.sh
	@hack/realprograms.sh $(PROGRAMS)

.PHONY: deps-vm
deps-vm: ## install what make vmtest needs: an emulator, and a kernel that is only unpacked
	@hack/vm-deps.sh

.PHONY: vmtest
vmtest: ## test on NVMe devices in a virtual machine (make deps-vm installs it)
	@hack/vm-test.sh

.PHONY: gate
gate: deps build ## measure against the targets in perf/targets/ci, fail on a miss
	bin/cfs-perf gate --profile ci

.PHONY: reference
reference: ## build bin/cfs-perf with the reference I/O engine in it, for bench io
	CGO_ENABLED=0 $(GO) build $(REFERENCE) -o bin/ ./cmd/cfs-perf

.PHONY: lint
lint: ## go vet and staticcheck
	$(GO) vet ./...
	$(GO) vet -tags iouringgo ./iopath ./perf
	$(GO) tool staticcheck ./...
	$(GO) tool staticcheck -tags iouringgo ./iopath ./perf

.PHONY: fuzz
fuzz: ## fuzz every target, FUZZTIME seconds in total
	@echo "== fuzzing"
	@CGO_ENABLED=0 hack/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: ## benchmarks, in the form that benchstat reads
	CGO_ENABLED=0 $(GO) test -vet=off -run '^$$' -bench '$(BENCH)' -benchmem -timeout 30m $(PKG)

.PHONY: demo
demo: deps build ## start a three-node cluster here, mount it, work on it, break it, verify it (as root)
	bin/cfs demo $(if $(filter short,$(DEMO)),--short)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
