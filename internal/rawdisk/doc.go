// Package rawdisk takes a disk's own rates, to which ours are put in relation:
// it runs fio, and it prepares the files that both run on.
//
// A rate means something only on blocks that have been written before: a sparse
// or merely allocated file costs a third of the write rate, and its reads never
// reach the disk. [Prewrite] writes a file once in full. [RunFio] runs one
// [Job] with io_uring, direct, registered buffers and file, and reads fio's
// report. [SeqWrite] and [SeqRead] take the rate of a file as a program sees it.
package rawdisk
