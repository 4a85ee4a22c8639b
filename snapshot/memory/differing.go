package memory

// Differing returns the pages of mem, among those in list, that hold something else than the image does; with i nil, that are not all
// zeros. mem may be any memory of the image's layout. Nobody may write to it meanwhile.
func (i *Image) Differing(mem [][]byte, list []Extent) ([]Extent, error) {
	l, done, err := i.use(mem)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := checkExtents(list, l.total); err != nil {
		return nil, err
	}
	return i.compare(l, mem, list)
}
