# The old iptables of Debian with what it needs to run, in the folder $1: by mmdebstrap, from where this
# machine has its packages. No shell, no package manager.
set -ef
rm -rf "$1"
keep='/usr/sbin/xtables-*-multi /usr/sbin/ip*tables-legacy* /usr/sbin/ip*tables-nft* /usr/lib/*/xtables/*
  /lib64/* /lib/ld-linux* /lib/*/ld-linux* /lib/*/libc.so.* /lib/*/libm.so.*
  /usr/lib/*/libip[46]tc.so.* /usr/lib/*/libxtables.so.* /usr/lib/*/libmnl.so.* /usr/lib/*/libnftnl.so.*
  /usr/lib/*/libnetfilter_conntrack.so.* /usr/lib/*/libnfnetlink.so.*
  /etc/protocols /etc/services /etc/ethertypes /usr/share/doc/*/copyright'
folder=$1
set -- --dpkgopt='path-exclude=/*'
for path in $keep; do set -- "$@" --dpkgopt="path-include=$path"; done
set +f
apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u |
  mmdebstrap --quiet --mode=root --format=directory --variant=extract --include=iptables "$@" \
    "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$folder" -
# Its scripts do not run, which would link the plain names. They are tried where there is no nf_tables.
for program in iptables ip6tables; do
  for what in '' -save -restore; do ln -s $program-legacy$what "$folder/usr/sbin/$program$what"; done
done
# What mmdebstrap leaves says where it ran.
for path in "$folder"/* "$folder"/etc/*; do
  case ${path#"$folder"/} in
    lib | lib64 | usr | etc | etc/protocols | etc/services | etc/ethertypes) ;;
    *) rm -rf "$path" ;;
  esac
done
