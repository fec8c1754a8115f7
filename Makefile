# Thin wrappers around cargo. `make demo` and `make test` do all their own set-up on a machine that
# has Rust, git and make. Installing the Debian packages and creating namespaces requires root.

SHELL      := /bin/bash
CARGO      ?= cargo
HOST       := $(shell rustc -vV | sed -n 's/^host: //p')
DIST       := target/dist
DESTDIR    ?=
CNI_BIN_DIR ?= /opt/cni/bin
PREFIX     ?= /usr/local

# The executables have no dynamic loader and need no relocation at start, because a plugin is
# started for every request. `--target` keeps these flags away from build scripts and macros.
# One short hash is computed in portable code: detecting the processor's features takes
# 20 µs in a virtual machine.
# Separate cargo calls, so that the features of one executable do not affect another.
STATIC     := RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static --cfg sha2_backend="soft"' $(CARGO) build --locked --profile shipped --target $(HOST)
BUILT      := target/$(HOST)/shipped

.PHONY: build demo test test-clients test-kubernetes test-nomad kernels dataplane reference-suite e2e bench crash soak fuzz lint advisories tools tools-kubernetes image install packages build-packages image-packages clean

build: build-packages
	$(STATIC) -p cni-hostgw
	$(STATIC) -p hostgw-agent
	$(STATIC) -p subnet-env --features cli
	mkdir -p $(DIST)
	for exe in cni-hostgw hostgw-agent subnet-env; do \
	  cp $(BUILT)/$$exe $(DIST)/.$$exe && mv -f $(DIST)/.$$exe $(DIST)/$$exe; done

# Waits for the lock of another package manager for up to five minutes.
APT := apt-get -o DPkg::Lock::Timeout=300

# The Debian packages needed to build (etcd's protocol files are compiled) and to test. Only missing
# packages are installed.
BUILD_PACKAGES := protobuf-compiler libprotobuf-dev
IMAGE_PACKAGES := buildah mmdebstrap
PACKAGES := iproute2 nftables iptables busybox-static containernetworking-plugins containerd runc \
            etcd-server etcd-client prometheus curl openssl radvd strace tinyproxy

packages build-packages image-packages:
	@missing=$$(for p in $(or $(if $(filter build-%,$@),$(BUILD_PACKAGES)),$(if $(filter image-%,$@),$(IMAGE_PACKAGES)),$(PACKAGES)); do \
	  dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then $(APT) update -q && DEBIAN_FRONTEND=noninteractive $(APT) install -qy --no-install-recommends $$missing; fi

# KEEP=1 leaves the lab running and prints how to enter it. STORE=etcd leases the subnets from etcd,
# and STORE=kube takes them from the Nodes of a kube-apiserver, which requires Go to build.
demo: build packages $(if $(filter kube,$(STORE)),tools)
	KEEP=$(KEEP) STORE=$(STORE) $(CARGO) run --locked -q -p conformance --bin demo

test: lint build packages
	$(CARGO) test --locked --workspace --all-features --exclude conformance
	$(CARGO) test --locked -p conformance

# Everything that requires Go or the image: the real clients, flanneld, kube-apiserver, kubelet.
test-clients: PACKAGES += buildah conmon podman
test-clients: build packages tools image
	$(CARGO) test --locked -p conformance --features clients --test clients --test runtimes --test reference_suite --test flannel --test kube --test kube_clusters --test kube_proxy --test manifest
	$(CARGO) test --locked -p conformance --features clients --test kubernetes

# Kubernetes' own network tests in a whole cluster. ONLY selects runs by a part of their names.
test-kubernetes: build packages tools-kubernetes image
	$(CARGO) test --locked -p conformance --features kubernetes --test kubernetes_e2e --test kubernetes_upgrade -- --test-threads=1 $(ONLY)

# What the network carries and what it costs, next to the reference with flanneld's host-gw and vxlan: a table, and
# the same as a picture. ROUNDS of 20 or 25 measurements of half a second.
ROUNDS ?= 15
dataplane: PACKAGES += ethtool
dataplane: build packages tools
	$(CARGO) run --locked -q --release -p conformance --bin dataplane -- $(ROUNDS) 500

# The most important tests on Debian's kernels, in virtual machines without hardware support.
kernels: PACKAGES += qemu-system-x86 conntrack ipvsadm
kernels: build packages
	sh conformance/src/kernels/build.sh target/kernels
	$(CARGO) test --locked -p conformance --features kernels --test kernels -- --test-threads=1

# Nomad, of the last release with an open licence, takes five minutes to build.
test-nomad: build packages
	cd conformance/tools/nomad && $(subst CGO_ENABLED=0,CGO_ENABLED=1,$(GO_BUILD)) -ldflags='-s -w' -o ../../../target/tools/ tool
	$(CARGO) test --locked -p conformance --features nomad --test nomad

# The reference's own test suite of `bridge`, performed by our plugin: how many specs pass.
reference-suite: build packages tools
	$(CARGO) test --locked -p conformance --features clients --test reference_suite -- --nocapture

# Everything, however long it takes.
e2e: test test-clients test-kubernetes test-nomad kernels
	for store in file etcd kube; do $(MAKE) demo STORE=$$store || exit 1; done
	$(MAKE) bench

bench: PACKAGES += time
bench: build packages tools
	$(STATIC) -p conformance --bin floor
	$(CARGO) run --locked -q --release -p conformance --bin bench -- plugin $(BUILT)/floor
	$(CARGO) run --locked -q --release -p conformance --bin bench -- ports $(BUILT)/floor
	$(CARGO) run --locked -q --release -p conformance --bin bench -- agent

# Kills a request before and after each of its system calls, and makes each call fail in every way:
# about 26,000 points in about a quarter of an hour. `make test` tries a tenth of them.
crash: build packages
	$(CARGO) run --locked -q -p conformance --bin crash

# Random concurrent operations for as long as wanted. The same seed chooses the same operations.
MINUTES ?= 10
SEED    ?= 1
soak: build packages
	$(CARGO) run --locked -q -p conformance --bin soak -- --minutes $(MINUTES) --seed $(SEED)

# Gives each parser a million damaged inputs instead of 2,000, and `plan` a million routing tables.
# SEED chooses other ones.
CASES ?= 1000000
fuzz:
	CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true CASES=$(CASES) SEED=$(SEED) $(CARGO) test --locked --release --workspace --all-features --exclude conformance -- damaged any_routes

# Also checks that each key, flag and metric is in its table, and that links lead somewhere.
lint: build-packages target/cargo-tools/bin/cargo-deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --document-private-items
	$(CARGO) test --locked -q -p netconf -p hostgw-agent documented
	$(CARGO) test --locked -q -p conformance --test documents
	target/cargo-tools/bin/cargo-deny --locked check licenses bans sources

# Also compares the crates with the list of known vulnerabilities, which is fetched with git.
advisories: target/cargo-tools/bin/cargo-deny
	target/cargo-tools/bin/cargo-deny --locked check advisories

# Unoptimized: it is built in half the time, and runs for a second.
target/cargo-tools/bin/cargo-deny:
	$(CARGO) install --locked --debug cargo-deny --version 0.20.2 --root target/cargo-tools

# The real clients, from pinned Go modules. containerd has its own module, because it requires
# another release of the API that crictl uses. kubelet and kube-apiserver have one, too, because
# their modules refer to each other only by folder.
GO_BUILD := GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -trimpath

KUBERNETES := kube-apiserver kube-proxy kubelet

# flanneld requires a module of a cloud provider that is not available: its sources are built
# without that backend.
FLANNEL := target/tools-src/flannel

# The reference's test suite of bridge: its files, with verbs that run an executable. Three of its
# specs attach the node's own namespace instead of a container's. Four lines expect a link-local
# address on the bridge, which the kernel adds a moment after the first port is up.
BRIDGE := target/tools-src/bridge

tools:
	cd conformance/tools && $(GO_BUILD) -o ../../target/tools/ tool ./ocicni-start
	cd conformance/tools/containerd && $(GO_BUILD) -tags 'no_btrfs no_devmapper no_zfs' -o ../../../target/tools/ tool
	cd conformance/tools/kubernetes && $(GO_BUILD) -ldflags='-s -w' -o ../../../target/tools/ $(KUBERNETES:%=k8s.io/kubernetes/cmd/%)
	cd conformance/tools/multus && $(GO_BUILD) -ldflags='-s -w' -o ../../../target/tools/ tool
	cd conformance/tools/nerdctl && $(GO_BUILD) -ldflags='-s -w' -o ../../../target/tools/ tool
	cd conformance/tools/crio && $(GO_BUILD) -ldflags='-s -w' -tags 'containers_image_openpgp exclude_graphdriver_btrfs' -o ../../../target/tools/ tool
	sources=$$(cd conformance/tools/crio && go list -m -f '{{.Dir}}' github.com/cri-o/cri-o) && \
	  cc -std=c99 -Os -static -o target/tools/pinns "$$sources"/pinns/src/*.c
	rm -rf $(BRIDGE) && mkdir -p $(BRIDGE) && cp conformance/tools/bridge/* $(BRIDGE)
	cd $(BRIDGE) && go mod download && \
	  cp $$(go list -m -f '{{.Dir}}' github.com/containernetworking/plugins)/plugins/main/bridge/*.go . && chmod u+w *.go && \
	  sed -i 's/^func cmd\(Add\|Check\|Del\|Status\)(/func reference\1(/' bridge.go && \
	  sed -i -e 's/createCmdArgs(originalNS,/createCmdArgs(targetNS,/' -e '/Expect(addrs).ToNot(BeEmpty())$$/d' bridge_test.go && \
	  CGO_ENABLED=0 go test -trimpath -c -o ../../tools/bridge/bridge.test . && $(GO_BUILD) -o ../../tools/bridge/ tool
	test -x target/tools/flanneld || { set -e; rm -rf $(FLANNEL); mkdir -p target/tools-src; \
	  sources=$$(cd conformance/tools/flannel && go mod download && go list -m -f '{{.Dir}}' github.com/flannel-io/flannel); \
	  cp -r "$$sources" $(FLANNEL); chmod -R u+w $(FLANNEL); echo 'package tencentvpc' > $(FLANNEL)/pkg/backend/tencentvpc/tencentvpc.go; \
	  cd $(FLANNEL) && GOFLAGS=-mod=readonly CGO_ENABLED=1 go build -trimpath -ldflags='-s -w' -o ../../tools/flanneld .; }

# The rest of a whole Kubernetes, its own tests, and the images that they start. All programs of
# Kubernetes are of one release.
tools-kubernetes: tools image-packages
	cd conformance/tools/kubernetes && $(GO_BUILD) -ldflags='-s -w' -o ../../../target/tools/ \
	  tool k8s.io/kubernetes/test/images/regression-issue-74839 github.com/onsi/ginkgo/v2/ginkgo
	cd conformance/tools/kubernetes && $(subst build,test -c,$(GO_BUILD)) -ldflags='-s -w' -o ../../../target/tools/e2e.test k8s.io/kubernetes/test/e2e
	cd conformance/tools/coredns && $(GO_BUILD) -ldflags='-s -w' -o ../../../target/tools/ tool
	sources=$$(cd conformance/tools/kubernetes && go list -m -f '{{.Dir}}' k8s.io/kubernetes) && \
	  install -m 644 "$$sources"/test/images/agnhost/porter/localhost.* "$$sources"/cluster/addons/dns/coredns/coredns.yaml.base target/tools/
	sh conformance/src/cluster/images.sh target/kubernetes target/tools

# The agent's image as archives to import: plain, with iptables-legacy, and for tests of upgrades
# with executables that have one more line. Both executables are inside. Nothing is left in buildah's own storage.
IMAGE         := target/image
IMAGE_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
BUILDAH       := CONTAINERS_CONF=$(CURDIR)/$(IMAGE)/containers.conf buildah --root $(CURDIR)/$(IMAGE)/storage \
                 --runroot $(CURDIR)/$(IMAGE)/run --storage-driver vfs

image: build image-packages
	rm -rf $(IMAGE) && mkdir -p $(IMAGE)/context
	cp $(DIST)/hostgw-agent $(DIST)/cni-hostgw $(IMAGE)/context
	sh crates/hostgw-agent/image/iptables.sh $(IMAGE)/context/iptables
	echo '[network]' >$(IMAGE)/containers.conf
	echo 'network_config_dir = "$(CURDIR)/$(IMAGE)/none"' >>$(IMAGE)/containers.conf
	set -e; for file in $(notdir $(wildcard crates/hostgw-agent/image/Containerfile*)); do \
	  tag=$(IMAGE_VERSION)$$(echo "$${file#Containerfile}" | tr . -); \
	  $(BUILDAH) build --isolation chroot --quiet --timestamp 0 --omit-history --disable-compression=false \
	    --label org.opencontainers.image.version=$(IMAGE_VERSION) -f crates/hostgw-agent/image/$$file \
	    -t oci-archive:$(IMAGE)/cni-hostgw-$$tag.tar:localhost/cni-hostgw:$$tag $(IMAGE)/context; done
	for exe in hostgw-agent cni-hostgw; do echo next >>$(IMAGE)/context/$$exe; done
	$(BUILDAH) build --isolation chroot --quiet -f crates/hostgw-agent/image/Containerfile \
	  -t oci-archive:$(IMAGE)/next.tar:localhost/cni-hostgw:next $(IMAGE)/context
	rm -rf $(IMAGE)/storage $(IMAGE)/run $(IMAGE)/context
	ls -l $(IMAGE)/*.tar

# Replaces files by rename, so that a plugin in use is never incomplete.
install: build
	@put() { mkdir -p "$$2" && cp "$$1" "$$2/.$$3.new" && chmod "$$4" "$$2/.$$3.new" && mv -f "$$2/.$$3.new" "$$2/$$3" && echo "$$2/$$3"; }; set -e; \
	put $(DIST)/cni-hostgw "$(DESTDIR)$(CNI_BIN_DIR)" cni-hostgw 0755; \
	put $(DIST)/hostgw-agent "$(DESTDIR)$(PREFIX)/sbin" hostgw-agent 0755; \
	put $(DIST)/subnet-env "$(DESTDIR)$(PREFIX)/bin" subnet-env 0755; \
	put examples/hostgw.conf "$(DESTDIR)/etc/iproute2/rt_protos.d" hostgw.conf 0644

clean:
	$(CARGO) clean
