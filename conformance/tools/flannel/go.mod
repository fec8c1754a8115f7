// flanneld cannot be built from this module. Its sources are copied and built separately, because
// one of the
// modules that they require is not available.
module flannel

go 1.26.0

require github.com/flannel-io/flannel v0.28.10
