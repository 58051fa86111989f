#!/bin/busybox sh
# PID 1 of the guest of hack/vm.sh: loads the modules that /mods.list names, one
# "file parameters" a line, puts a tmpfs over the host's root, which is mounted
# read-only, and runs the job in it. The job's output goes out through the
# virtio port "out" as it comes, its exit status through "status".
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm

# end says why on the console and powers off.
end() {
  echo "vm-init: $1"
  sync
  poweroff -f
}

while read -r file parameters; do
  # shellcheck disable=SC2086 # parameters are words
  insmod "/mods/$file" $parameters || end "insmod $file $parameters failed"
done </mods.list

mkdir -p /host /rw /new
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose hostroot /host || end "the host's root cannot be mounted"
mount -t tmpfs tmpfs /rw
mkdir -p /rw/upper /rw/work
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /new || end "no overlay on the host's root"
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
mount -t tmpfs -o mode=755 tmpfs /new/run
# The guest's kernel is not the host's: modprobe must find its modules.
modules=$(cat /modules.dir)
mkdir -p "/new/lib/modules/$(uname -r)"
mount --bind "/new$modules" "/new/lib/modules/$(uname -r)" || end "no modules in $modules"
ifconfig lo up
hostname vm

out= status=
for port in /new/sys/class/virtio-ports/*; do
  case $(cat "$port/name") in
  out) out=/new/dev/${port##*/} ;;
  status) status=/new/dev/${port##*/} ;;
  esac
done
[ -n "$out" ] && [ -n "$status" ] || end "no virtio ports"
mkdir -p /new/run/vm
cp /job /new/run/vm/job
chroot /new /bin/bash /run/vm/job </new/dev/null >"$out" 2>&1
code=$?
echo "$code" >"$status"
end "the job ended with status $code"
